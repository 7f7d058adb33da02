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
