"""Invented rows of the benchmarks that papers report, in the layout that they have on the Hub."""

from __future__ import annotations

from typing import Any

from lcfbench.tasks.yaml_files import read_task

Table = list[dict[str, Any]]


def mmlu_pro(ident: int, options: int = 10, answer: str = "B", index: int = 1) -> dict[str, Any]:
    texts = [f"option {ident} {i}" for i in range(options)]
    about = {"cot_content": "", "category": ["law", "physics"][ident % 2], "src": "made"}
    key = {"answer": answer, "answer_index": index}
    return {"question_id": ident, "question": f"Which is {ident}?", "options": texts, **key, **about}


def ceval(ident: int, answer: str = "C") -> dict[str, Any]:
    options = {letter: f"选项{letter}{ident}" for letter in "ABCD"}
    return {"id": ident, "question": f"第{ident}题____。", **options, "answer": answer, "explanation": ""}


def medqa(ident: int, key: str = "B", answer: str = "") -> dict[str, Any]:
    options = {letter: f"drug {letter}{ident}" for letter in "ABCD"}
    about = {"meta_info": ["step1", "step2&3"][ident % 2], "metamap_phrases": ["a"]}
    texts = {"question": f"Patient {ident}?", "answer": answer or options[key]}
    return {**texts, "options": options, "answer_idx": key, **about}


def gsm8k(ident: int, gold: str = "") -> dict[str, Any]:
    solution = f"He has {ident} + 2 = <<{ident}+2={ident + 2}>>{ident + 2} pens.\n#### {gold or ident + 2}"
    return {"question": f"Tom has {ident} pens and buys 2. How many has he?", "answer": solution}


def math500(ident: int, answer: str) -> dict[str, Any]:
    about = {"subject": ["Algebra", "Geometry"][ident % 2], "level": 1 + ident % 5}
    solution = f"It is $\\boxed{{{answer}}}$."
    texts = {"problem": f"What is ${ident}$?", "solution": solution, "answer": answer}
    return {**texts, **about, "unique_id": f"test/algebra/{ident}.json"}


def longbench(ident: int, name: str = "hotpotqa", **more: Any) -> dict[str, Any]:
    texts = {"input": f"Who is {ident}?", "context": f"Passage 1:\nNumber {ident} is Ann {{input}}.\n"}
    about = {"length": 1000 + 4000 * (ident % 3), "dataset": name, "language": "en", "all_classes": None}
    return {**texts, "answers": [f"Ann {ident}", "Ann"], **about, "_id": f"id{ident}"} | more


def tables() -> dict[tuple[str, str, str], Table]:
    """(data set, config, split) to rows: enough of each benchmark for every one of its rules."""
    subjects = read_task("ceval", functions=True)["metadata"]["configs"]
    ceval_rows = {
        ("ceval/ceval-exam", name, split): [ceval(i, "ABCD"[i % 4]) for i in range(n)]
        for name in subjects
        for split, n in (("val", 2), ("dev", 5))
    }
    classes = ["Food", "Other animal", "animal"]
    return ceval_rows | {
        ("THUDM/LongBench", "hotpotqa", "test"): [
            *(longbench(i) for i in range(6)),
            longbench(6, answers=[]),
            longbench(7, answers=["", "Bo"]),
        ],
        ("THUDM/LongBench", "hotpotqa_e", "test"): [longbench(i) for i in range(50, 53)],
        ("THUDM/LongBench", "trec", "test"): [
            longbench(0, "trec", answers=["Food"], all_classes=classes),
            longbench(1, "trec", answers=["Drink"], all_classes=classes),
            longbench(2, "trec", answers=["Other animal"], all_classes=classes),
        ],
        ("THUDM/LongBench", "samsum", "test"): [longbench(i, "samsum") for i in range(3)],
        ("THUDM/LongBench", "multifieldqa_zh", "test"): [
            longbench(
                0, "multifieldqa_zh", language="zh", context="厦门大学在厦门。" * 20, answers=["厦门大学。"]
            )
        ],
        ("openai/gsm8k", "main", "test"): [
            *(gsm8k(i) for i in range(6)),
            gsm8k(6, "2,125"),
            gsm8k(7) | {"answer": "No answer."},
        ],
        ("openai/gsm8k", "main", "train"): [gsm8k(i) for i in range(40, 44)],
        ("HuggingFaceH4/MATH-500", "default", "test"): [
            math500(i, a) for i, a in enumerate(["4", "\\frac{1}{2}", "(1,2)", "x+1", "\\text{east}", " "])
        ],
        ("TIGER-Lab/MMLU-Pro", "default", "test"): [
            *(mmlu_pro(i) for i in range(6)),
            mmlu_pro(7, options=3, answer="C", index=2),
            mmlu_pro(3983, options=7, answer="C", index=1),
            mmlu_pro(8, options=4, answer="E", index=4),
            mmlu_pro(9, options=11),
        ],
        ("TIGER-Lab/MMLU-Pro", "default", "validation"): [mmlu_pro(i) for i in range(20, 24)],
        ("GBaker/MedQA-USMLE-4-options", "default", "test"): [
            *(medqa(i, "ABCD"[i % 4]) for i in range(6)),
            medqa(6, "A", answer="drug B6"),
            medqa(7, "E", answer="drug B7"),
        ],
        ("GBaker/MedQA-USMLE-4-options", "default", "train"): [medqa(i) for i in range(30, 34)],
    }
