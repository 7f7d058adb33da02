"""What the metrics and models of metrics.json are called on pages, in tables and in sentences."""

METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "weighted_f1": "weighted F1",
    "mcc": "MCC",
    "roc_auc": "ROC AUC",
    "ece": "ECE",
    "fpr": "FPR",
    "fnr": "FNR",
    "exact_match": "exact match",
    "rougeL": "ROUGE-L",
    "chrf": "chrF",
    "valid_json": "valid JSON",
    "call_match": "call match",
}
# What needs a word of explanation where it is shown.
MEANINGS = {
    "F1": "The harmonic mean of precision and recall.",
    "macro F1": "The mean over classes of F1, so that a rare class counts as much as a frequent one.",
    "micro F1": "F1 of all rows together; where every row has one class and one prediction, it is the accuracy.",
    "weighted F1": "The mean over classes of F1, each by its share of the rows.",
    "precision": "Of the rows predicted as a class, the share that is of it.",
    "recall": "Of the rows of a class, the share predicted as it.",
    "MCC": "Matthews correlation coefficient of classes and predictions: 1 if all are right, 0 as by chance, negative "
    "below that.",
    "ROC AUC": "How often a row of a class gets a higher probability of it than a row of another: 0.5 by chance, 1 at "
    "best; of several classes the mean.",
    "ECE": "Expected calibration error: how far confidence and accuracy are apart, on average over bins of "
    "confidence; 0 if a model is right as often as it says.",
    "FPR": "False positive rate: of the rows of other classes, the share predicted as the class; of more than two "
    "classes the mean.",
    "FNR": "False negative rate: of the rows of a class, the share predicted as another; of more than two classes the "
    "mean.",
    "exact match": "The share of answers that are the reference, but for white space at the ends.",
    "ROUGE-L": "F1 of the longest common subsequence of words with the reference.",
    "chrF": "How many short runs of letters an answer and the reference have in common.",
    "p": "How probable a difference at least as large would be if there were none in truth.",
    "Holm": "The p-value after Holm's correction: with many comparisons some p are small by chance.",
    "McNemar": "McNemar's test asks whether those rows that only one of the two has right are too unevenly shared to "
    "be chance.",
}


def explained(name: str) -> str:
    """The term of `MEANINGS` that the name of a column stands for; the name itself where it stands for none."""
    return next((term for term in ("Holm", "McNemar", "F1") if name.startswith(term) or name == f"p, {term}"), name)


# Of a table of runs, in order, after the primary one.
COLUMNS = {key: name for key, name in METRICS.items() if key != "micro_f1"}
COLUMNS |= {"invalid": "invalid", "unfinished": "unfinished"}
NAMES = {
    "tuned": "tuned model",
    "earlier": "earlier adapter",
    "base": "base model",
    "majority": "majority class",
    "stratified": "stratified draw",
    "tfidf_logistic_regression": "TF-IDF + logistic regression",
    "always_best": "best single class",
    "most_common_answer": "most common answer",
    "nearest_training_row": "nearest training row",
}

IN_SENTENCES = NAMES | {
    "base": "the base",
    "earlier": "the earlier adapter",
    "tuned": "the tuned model",
    "majority": "the majority class",
    "stratified": "a stratified draw",
    "most_common_answer": "the most common answer",
    "nearest_training_row": "the nearest training row's answer",
}
