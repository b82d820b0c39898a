"""MMLU's development questions, five a subject: the worked examples of its tests."""

from choice import document

from lcfbench.tasks.process_docs import per_row


@per_row
def example(row, index):
    return document(
        f"{row['subject']}-dev-{index}", row["question"], row["choices"], row["answer"], row["subject"]
    )
