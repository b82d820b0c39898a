"""Teaching: a LoRA that puts a task's facts, or its train split, into a base model."""
