"""LongBench: for each subset the published prompt, longest answer and score.

Prompts and lengths are those of https://github.com/THUDM/LongBench (`config/`, MIT licence, THU-KEG and
Zhipu AI). Subsets whose names end in `_e` are LongBench-E: other rows of the same kind, spread evenly
over lengths; prompt and score are the same.
"""

import re
from dataclasses import dataclass

from lcfbench.errors import UserError
from lcfbench.tasks import longbench_metrics as metrics
from lcfbench.tasks.process_docs import per_row

QUESTION = (
    "Answer the question based on the given passages. Only give me the answer and do not output "
    "any other words."
)
MULTI = (
    f"{QUESTION}\n\nThe following are given passages.\n{{context}}\n\n{QUESTION}\n\nQuestion: "
    f"{{input}}\nAnswer:"
)
STORY = "as concisely as you can, using a single phrase if possible. Do not provide any explanation."
ARTICLE = (
    "as concisely as you can, using a single phrase or sentence if possible. If the question "
    "cannot be answered "
    'based on the information in the article, write "unanswerable". If the question is a '
    "yes/no question, answer "
    '"yes", "no", or "unanswerable". Do not provide any explanation.'
)
CODE = "Please complete the code given below. \n"


@dataclass(frozen=True)
class Subset:
    """One subset. tokens: of the longest answer. first_line: whether the answer ends with its line.

    chat: whether the prompt is put into the model's chat template.
    """

    prompt: str
    tokens: int
    score: metrics.Score
    first_line: bool = False
    chat: bool = True
    until: tuple[str, ...] = ()
    has_e: bool = False


SUBSETS = {
    "narrativeqa": Subset(
        "You are given a story, which can be either a novel or a movie script, and a question. "
        f"Answer the question {STORY}\n\nStory: {{context}}\n\n"
        f"Now, answer the question based on the story {STORY}\n\nQuestion: {{input}}\n\nAnswer:",
        128,
        metrics.token_f1,
    ),
    "qasper": Subset(
        f"You are given a scientific article and a question. Answer the question {ARTICLE}\n\n"
        "Article: {context}\n\n"
        f" Answer the question based on the above article {ARTICLE}\n\nQuestion: {{input}}\n\nAnswer:",
        128,
        metrics.token_f1,
        has_e=True,
    ),
    "multifieldqa_en": Subset(
        "Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following "
        "question based on the "
        "above text, only give me the answer and do not output any other words.\n\nQuestion: "
        "{input}\nAnswer:",
        64,
        metrics.token_f1,
        has_e=True,
    ),
    "multifieldqa_zh": Subset(
        "阅读以下文字并用中文简短回答：\n\n{context}\n\n现在请基于上面的文章回答下面的问题，只"
        "告诉我答案，不要输出任何其他字词。\n\n问题：{input}\n回答：",
        64,
        metrics.token_f1_zh,
    ),
    "hotpotqa": Subset(MULTI, 32, metrics.token_f1, has_e=True),
    "2wikimqa": Subset(MULTI, 32, metrics.token_f1, has_e=True),
    "musique": Subset(MULTI, 32, metrics.token_f1),
    "dureader": Subset(
        "请基于给定的文章回答下述问题。\n\n文章：{context}\n\n请基于上述文章回答下面的问题。\n"
        "\n问题：{input}\n回答：",
        128,
        metrics.rouge_l_zh,
    ),
    "gov_report": Subset(
        "You are given a report by a government agency. Write a one-page summary of the report.\n\n"
        "Report:\n{context}\n\nNow, write a one-page summary of the report.\n\nSummary:",
        512,
        metrics.rouge_l,
        has_e=True,
    ),
    "qmsum": Subset(
        "You are given a meeting transcript and a query containing a question or instruction. "
        "Answer the query in "
        "one or more sentences.\n\nTranscript:\n{context}\n\nNow, answer the query based on "
        "the above meeting "
        "transcript in one or more sentences.\n\nQuery: {input}\nAnswer:",
        512,
        metrics.rouge_l,
    ),
    "multi_news": Subset(
        "You are given several news passages. Write a one-page summary of all news. \n\n"
        "News:\n{context}\n\nNow, write a one-page summary of all the news.\n\nSummary:",
        512,
        metrics.rouge_l,
        has_e=True,
    ),
    "vcsum": Subset(
        "下面有一段会议记录，请你阅读后，写一段总结，总结会议的内容。\n会议记录：\n{context}\n\n会议总结：",
        512,
        metrics.rouge_l_zh,
    ),
    "trec": Subset(
        "Please determine the type of the question below. Here are some examples of questions."
        "\n\n{context}\n{input}",
        64,
        metrics.class_accuracy,
        first_line=True,
        chat=False,
        has_e=True,
    ),
    "triviaqa": Subset(
        "Answer the question based on the given passage. Only give me the answer and do not "
        "output any other words. "
        "The following are some examples.\n\n{context}\n\n{input}",
        32,
        metrics.token_f1,
        first_line=True,
        chat=False,
        has_e=True,
    ),
    "samsum": Subset(
        "Summarize the dialogue into a few short sentences. The following are some examples.\n"
        "\n{context}\n\n{input}",
        128,
        metrics.rouge_l,
        first_line=True,
        chat=False,
        until=("\n",),
        has_e=True,
    ),
    "lsht": Subset(
        "请判断给定新闻的类别，下面是一些例子。\n\n{context}\n{input}",
        64,
        metrics.class_accuracy,
        first_line=True,
        chat=False,
    ),
    "passage_count": Subset(
        "There are some paragraphs below sourced from Wikipedia. Some of them may be "
        "duplicates. Please carefully "
        "read these paragraphs and determine how many unique paragraphs there are after "
        "removing duplicates. In "
        "other words, how many non-repeating paragraphs are there in total?\n\n{context}\n\n"
        "Please enter the final "
        "count of unique paragraphs after removing duplicates. The output format should only "
        "contain the number, "
        "such as 1, 2, 3, and so on.\n\nThe final answer is: ",
        32,
        metrics.count,
        has_e=True,
    ),
    "passage_retrieval_en": Subset(
        "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which paragraph the "
        "abstract is from.\n\n{context}\n\nThe following is an abstract.\n\n{input}\n\nPlease "
        "enter the number of the "
        'paragraph that the abstract is from. The answer format must be like "Paragraph 1", '
        '"Paragraph 2", etc.\n\n'
        "The answer is: ",
        32,
        metrics.retrieval,
        has_e=True,
    ),
    "passage_retrieval_zh": Subset(
        "以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n{context}"
        "\n\n下面是一个摘要\n\n{input}\n\n"
        '请输入摘要所属段落的编号。答案格式必须是"段落1"，"段落2"等格式\n\n答案是：',
        32,
        metrics.retrieval,
    ),
    "lcc": Subset(
        f"{CODE}{{context}}Next line of code:\n", 64, metrics.code_similarity, chat=False, has_e=True
    ),
    "repobench-p": Subset(
        f"{CODE}{{context}}{{input}}Next line of code:\n", 64, metrics.code_similarity, chat=False, has_e=True
    ),
}
NAMES = [*SUBSETS, *(f"{name}_e" for name, subset in SUBSETS.items() if subset.has_e)]


def _changes(name):
    """The parts of the task's file that depend on the subset."""
    subset = SUBSETS[name.removesuffix("_e")]
    kwargs = {"until": list(subset.until), "max_gen_toks": subset.tokens, "do_sample": False}
    return {"dataset_name": name, "generation_kwargs": kwargs, "metadata": {"chat": subset.chat}}


BY_OPTION = {"subset": {name: _changes(name) for name in NAMES}}


@per_row
def row(raw, index, *, subset="hotpotqa", max_words=0):
    """One prompt, cut in its middle where it is longer than `max_words`.

    Words are counted, characters in Chinese sets, as the data's `length` is. Drops a row without an
    answer, and a row of a classification whose answer is none of its classes.
    """
    name = subset.removesuffix("_e")
    answers, classes = [a for a in raw["answers"] if a.strip()], list(raw["all_classes"] or [])
    if not answers:
        return "no answer"
    if SUBSETS[name].score is metrics.class_accuracy and not set(answers) <= set(classes):
        return "an answer is none of the classes"
    texts = {"{context}": raw["context"], "{input}": raw["input"]}
    prompt = re.sub(r"\{context\}|\{input\}", lambda part: texts[part[0]], SUBSETS[name].prompt)
    length = raw["length"]
    return {
        "id": raw["_id"],
        "prompt": shortened(prompt, max_words, chinese=raw["language"] == "zh"),
        "answer": answers[0],
        "answers": answers,
        "classes": classes,
        "set": name,
        "subject": "0-4k" if length < 4000 else "4-8k" if length < 8000 else "8k+",
    }


def shortened(text, most, *, chinese):
    """The beginning and the end of a text that has more than `most` words (or characters); 0: all of it."""
    if most < 0:
        raise UserError(f"max_words={most}.", "Give 1 or more; 0 is the whole prompt.")
    if not most:
        return text
    units = list(re.finditer(r"\S" if chinese else r"\S+", text))
    if len(units) <= most:
        return text
    front = text[: units[(most + 1) // 2 - 1].end()]
    back = text[units[-(most // 2)].start() :] if most > 1 else ""
    return f"{front}{'' if chinese else ' '}{back}"


def score(doc, results):
    """The best score over the gold answers; sets of examples are read to the end of the first line."""
    subset, text = SUBSETS[doc["set"]], results[0]
    if subset.first_line:
        text = text.lstrip("\n").split("\n")[0]
    return {"longbench": max(subset.score(text, gold, doc["classes"]) for gold in doc["answers"])}
