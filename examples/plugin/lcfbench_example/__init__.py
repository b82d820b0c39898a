"""An example of methods, an adapter kind, a task and a control from outside lcfbench."""
