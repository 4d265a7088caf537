"""Names of the labelled files of the fixture `labelled`, for each kind of task."""

FILES = {
    "class": "reviews.csv",
    "labels": "labels.jsonl",
    "score": "scores.tsv",
    "pair": "pairs.jsonl",
    "tag": "tags.conll",
    "qa": "squad.json",
    "choice": "choices.jsonl",
}
