"""lcfbench: when one language model passes what it knows to another, how much gets across, how fast, and how do we know?"""

__version__ = "0.2.0"
