"""Recorded runs and adapters put where people look for them: files, the Hub, proofs."""
