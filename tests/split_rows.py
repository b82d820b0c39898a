"""Invented rows of benchmarks whose evidence is dealt to several models, in the Hub's layouts."""

from __future__ import annotations

import json


def musique(i: int, hops: int = 2, n: int = 20, **more: object) -> dict:
    paragraphs = [
        {"idx": k, "title": f"T{k % 7}", "paragraph_text": f"Fact {i} {k}.", "is_supporting": k % 5 == 1}
        for k in range(n)
    ]
    needed = [p for p in paragraphs if p["is_supporting"]]
    for paragraph in needed[hops:]:
        paragraph["is_supporting"] = False
    aliases = ["Person", "Person"]
    row = {"id": f"m{i}", "paragraphs": paragraphs, "question": f"Who {i}?", "answer": f"The Person {i}"}
    return {**row, "answer_aliases": aliases, "answerable": True, **more}


def twowiki(i: int, kind: str = "comparison", needed: int = 2, **more: object) -> dict:
    context = [[f"Title {i} {k}", [f"Fact {i} {k}.", f"More {k}."]] for k in range(10)]
    facts = [[f"Title {i} {k}", 0] for k in (8, 1, 4, 6)[:needed]]
    row = {"_id": f"w{i}", "type": kind, "question": f"Which {i}?", "answer": "yes"}
    text = {"context": context, "supporting_facts": facts, "evidences": []}
    return row | {key: json.dumps(value) for key, value in text.items()} | more


def as_hotpot(row: dict) -> dict:
    """The other layout of a 2WikiMultihopQA row."""
    context, facts = json.loads(row["context"]), json.loads(row["supporting_facts"])
    kept = {key: row[key] for key in ("type", "question", "answer")}
    return {
        **kept,
        "id": row["_id"],
        "context": {"title": [t for t, _ in context], "sentences": [s for _, s in context]},
        "supporting_facts": {"title": [t for t, _ in facts], "sent_id": [s for _, s in facts]},
    }


def leaf(question: str, answer: object, of: str = "", after: str = "") -> dict:
    evidence = {"title": of, "pageid": 1, "revid": 1, "url": ""} if of else None
    node = {"id": question, "question": question, "decomposition": [], "answer": answer}
    return {**node, "depends_on": [after] if after else [], "evidence": evidence}


def fanout(i: int, n: int = 5, **more: object) -> dict:
    names = [f"Town{i}x{k}" for k in range(n)]
    root = leaf("Which towns?", names, "Towns")
    leaves = [leaf(f"How big is {name}?", 1000 * k + i, name, root["id"]) for k, name in enumerate(names)]
    answer = {name: 1000 * k + i for k, name in enumerate(names)}
    row = {"id": f"f{i}", "question": "How big are the towns?", "decomposition": [root, *leaves]}
    row |= {"answer": answer, "categories": ["Geography"]} | more
    return row | {key: json.dumps(row[key]) for key in ("decomposition", "answer")}


def tables() -> dict[tuple[str, str, str], list[dict]]:
    """(data set, config, split) to rows: a few of each benchmark."""
    return {
        ("dgslibisey/MuSiQue", "default", "validation"): [musique(i, 2 + i % 3) for i in range(6)],
        ("dgslibisey/MuSiQue", "default", "train"): [musique(i) for i in range(50, 54)],
        ("xanhho/2WikiMultihopQA", "default", "validation"): [twowiki(i) for i in range(6)],
        ("xanhho/2WikiMultihopQA", "default", "train"): [as_hotpot(twowiki(i)) for i in range(50, 54)],
        ("zhudotexe/fanoutqa", "default", "dev"): [fanout(i) for i in range(6)],
    }
