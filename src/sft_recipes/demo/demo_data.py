"""The demo's task: which of eight intents a shop's customer has, written by a seeded generator.

Most messages also mention something that is *not* asked (already solved, rejected, another person's concern), with
the same words that ask for it elsewhere: a bag of words cannot tell which of the two is wanted. Each writing style is
a group, and the styles are unbalanced, so that measures per group have something to find.
"""

import json
import random
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

SEED = 20240517
SIZES = {"train": 2400, "validation": 400, "test": 800}
LABEL_NOISE = 0.035
TWO_TOPICS = 0.6

ITEMS = [
    "kettle",
    "lamp",
    "jacket",
    "blender",
    "chair",
    "tent",
    "camera",
    "backpack",
    "rug",
    "drill",
    "clock",
    "heater",
]

# label: its share, what a customer wants to do (after "to"), and the same as a thing.
INTENTS: dict[str, tuple[int, list[str], list[str]]] = {
    "tracking": (
        16,
        [
            "find out where my {item} is",
            "know when the parcel gets here",
            "see how far the {item} has come",
            "hear why the delivery is still not here",
            "learn which day the courier comes",
            "check on the late parcel",
        ],
        [
            "the whereabouts of my {item}",
            "the late delivery",
            "the parcel that never came",
            "the arrival date",
            "the courier who did not come",
            "the {item} lost on the way",
        ],
    ),
    "refund": (
        16,
        [
            "get my money back for the {item}",
            "be paid back",
            "have the price returned to my card",
            "send the {item} back for the full amount",
            "reclaim what I paid",
            "return the {item} and get the money",
        ],
        [
            "my money back",
            "the amount you owe me for the {item}",
            "the return of what I paid",
            "the repayment",
            "the price of the {item} I sent back",
            "the money for the parcel I returned",
        ],
    ),
    "exchange": (
        12,
        [
            "swap the {item} for another colour",
            "get the {item} in a bigger size",
            "trade the {item} for a smaller one",
            "send the {item} back for a different model",
            "return the {item} and get a newer version",
            "have another size instead",
        ],
        [
            "the swap of the {item}",
            "another colour of the {item}",
            "the bigger size",
            "a different model",
            "the trade for a smaller {item}",
            "the size that does not fit",
        ],
    ),
    "cancel": (
        12,
        [
            "call off the order",
            "stop the {item} before it ships",
            "withdraw my order",
            "undo the purchase",
            "drop the {item} from the order",
            "end the order before I pay",
        ],
        [
            "the order I no longer need",
            "the withdrawal of my order",
            "stopping the {item} before it ships",
            "the purchase I made by mistake",
            "the {item} I ordered twice",
            "calling off the order",
        ],
    ),
    "address": (
        12,
        [
            "have the {item} sent to my new flat",
            "change the street on the order",
            "move the delivery to my office",
            "correct the house number",
            "redirect the parcel to my neighbour",
            "change where the courier brings it",
        ],
        [
            "the wrong street on the parcel",
            "the new flat for the delivery",
            "the house number on the order",
            "the redirection of the {item}",
            "the place where the {item} goes",
            "the move to my office",
        ],
    ),
    "invoice": (
        10,
        [
            "get a receipt for the {item}",
            "have the bill with my company name",
            "download the tax document",
            "receive a copy of the bill",
            "see the price without tax",
            "print proof of the order",
        ],
        [
            "the receipt for the {item}",
            "a copy of the bill",
            "the tax document",
            "the company name on the bill",
            "the proof of the purchase",
            "the missing bill for the {item}",
        ],
    ),
    "account": (
        10,
        [
            "log in again",
            "reset my password",
            "unlock my profile",
            "change the email I sign in with",
            "get past the login page",
            "close my profile",
        ],
        [
            "the locked profile",
            "my lost password",
            "the error on the login page",
            "the email I sign in with",
            "the code that signs me in",
            "my profile",
        ],
    ),
    "damage": (
        12,
        [
            "report that the {item} came broken",
            "have the cracked {item} repaired",
            "get the missing part",
            "have the {item} fixed",
            "use the warranty of the {item}",
            "tell you that the parcel was crushed",
        ],
        [
            "the broken {item}",
            "the crack in the {item}",
            "the missing part of the {item}",
            "the warranty repair",
            "the crushed parcel",
            "the {item} that does not turn on",
        ],
    ),
}
LABELS = list(INTENTS)
INSTRUCTION = f"Name the customer's intent: {', '.join(LABELS[:-1])} or {LABELS[-1]}."

# {a}/{an} is asked, {b}/{bn} only mentioned; a and b are what to do, an and bn are things.
FRAMES: dict[str, tuple[int, list[str], list[str]]] = {
    "formal": (
        36,
        [
            "I would like to {a}.",
            "I am writing about {an}.",
            "Would you kindly help me to {a}?",
            "My request concerns {an}.",
        ],
        [
            "My request concerns {an} and not {bn}.",
            "My request does not concern {bn} but {an}.",
            "I would like to {a} rather than {b}.",
            "Rather than {b}, I would like to {a}.",
            "While {bn} has been resolved, {an} has not.",
            "I still await {an}, whereas {bn} has been resolved.",
            "Your colleague has dealt with {bn}; kindly attend to {an}.",
            "Kindly attend to {an}; your colleague has dealt with {bn}.",
            "Last week I asked to {b}, which was done. Today I wish to {a}.",
            "Today I wish to {a}. Last week I asked to {b}, which was done.",
        ],
    ),
    "casual": (
        34,
        ["i wanna {a}", "can u guys {an}? i mean sort it out", "so how do i {a}", "got a question on {an}"],
        [
            "dont wanna {b}, just wanna {a}",
            "just wanna {a}, dont wanna {b}",
            "its not {bn} this time, its {an}",
            "its {an} this time, not {bn}",
            "ok {bn} is all good now but {an} isnt",
            "{an} is still a mess, {bn} is all good",
            "my mate had to {b}, me i gotta {a}",
            "i gotta {a}, it was my mate who had to {b}",
            "was gonna {b} but nah, i'd rather {a}",
            "i'd rather {a} now, forget that i was gonna {b}",
        ],
    ),
    "terse": (
        18,
        ["Need to {a}.", "Re: {an}.", "{an}. Please act.", "Want to {a}."],
        [
            "{an}, not {bn}.",
            "Not {bn}. {an}.",
            "{bn}: done. {an}: open.",
            "{an}: open. {bn}: done.",
            "Need to {a}. No need to {b}.",
            "No need to {b}. Need to {a}.",
            "Before: {bn}. Now: {an}.",
            "Now: {an}. Before: {bn}.",
        ],
    ),
    "non_native": (
        12,
        ["please I am wanting to {a}", "I have problem, is {an}", "how it is possible to {a}", "I ask you for {an}"],
        [
            "problem is not {bn}, problem is {an}",
            "problem is {an}, is not {bn}",
            "I am not wanting to {b}, I am wanting to {a}",
            "I am wanting to {a}, not wanting to {b}",
            "for {bn} already is good, for {an} not yet",
            "for {an} not yet is good, for {bn} already",
            "yesterday I ask to {b}, now is other thing, to {a}",
            "now I ask to {a}, yesterday was other thing, to {b}",
            "my wife she must {b}, but me I must {a}",
            "me I must {a}, is my wife she must {b}",
        ],
    ),
}
GROUPS = list(FRAMES)
OPENINGS = {
    "formal": ["Dear team, ", "Good morning. ", "To whom it may concern, ", ""],
    "casual": ["hey ", "hiya, ", "yo ", "sorry to bug u again, ", ""],
    "terse": ["Order {number}. ", ""],
    "non_native": ["Hello my friend, ", "Good day sir, ", "Excuse for my english, ", ""],
}
CLOSINGS = {
    "formal": [" The order number is {number}.", " Kind regards.", " Thank you in advance.", ""],
    "casual": [" lol", " thx", ", order {number} btw", ""],
    "terse": [" {number}.", ""],
    "non_native": [", number is {number}", ", please to answer", ", many thanks you", ""],
}


class Message(NamedTuple):
    """A customer's text, what it truly asks for, its writing style, and what it only mentions (or nothing)."""

    text: str
    label: str
    group: str
    mentioned: str | None


def _pick(rng: random.Random, weights: dict[str, int]) -> str:
    return rng.choices(list(weights), weights=list(weights.values()))[0]


def message(rng: random.Random) -> Message:
    """One customer message; some mention a second intent that is not asked for."""
    group = _pick(rng, {name: frame[0] for name, frame in FRAMES.items()})
    label = _pick(rng, {name: intent[0] for name, intent in INTENTS.items()})
    # By the labels' own shares: drawn otherwise, how rare a topic is would betray which of the two is asked.
    other = _pick(rng, {name: intent[0] for name, intent in INTENTS.items() if name != label})
    two_topics = rng.random() < TWO_TOPICS
    _, of_one, of_two = FRAMES[group]
    frame = rng.choice(of_two if two_topics else of_one)
    (_, a, an), (_, b, bn) = INTENTS[label], INTENTS[other]
    text = frame.format(a=rng.choice(a), an=rng.choice(an), b=rng.choice(b), bn=rng.choice(bn))
    text = text.replace("{item}", rng.choice(ITEMS), 1).replace("{item}", rng.choice(ITEMS))
    if group == "non_native":
        text = re.sub(r"\b(the|a|an) ", lambda match: "" if rng.random() < 0.7 else match[0], text)
    elif group == "casual":
        text = text.replace(" I ", " i ").replace("please", "pls").replace(" you ", " u ")
    else:
        text = re.sub(r"(^|\. )([a-z])", lambda match: match[1] + match[2].upper(), text)
    text = rng.choice(OPENINGS[group]) + text + rng.choice(CLOSINGS[group])
    text = text.replace("{number}", str(rng.randrange(1000, 9999)))
    return Message(text, label, group, other if two_topics else None)


def messages(rng: random.Random, taken: Collection[str] = ()) -> Iterator[Message]:
    """Endless messages, no text twice and none whose words are in `taken` (see `words`)."""
    seen = set(taken)
    while True:
        new = message(rng)
        if words(new.text) not in seen:
            seen.add(words(new.text))
            yield new


def words(text: str) -> str:
    """What makes two texts the same: their words, whatever the case, the punctuation and the order number."""
    return " ".join(re.findall(r"[a-z']+", text.lower()))


def splits() -> dict[str, list[dict[str, str]]]:
    """The rows of each split; no two of them, in whatever splits, have the same words."""
    rng = random.Random(SEED)
    source = messages(rng)
    result: dict[str, list[dict[str, str]]] = {}
    for name, size in SIZES.items():
        result[name] = []
        for _ in range(size):
            text, label, group, _ = next(source)
            if rng.random() < LABEL_NOISE:
                label = rng.choice([other for other in LABELS if other != label])
            result[name].append({"instruction": INSTRUCTION, "input": text, "output": label, "group": group})
    return result


def write(directory: Path) -> None:
    """Writes `train.jsonl`, `validation.jsonl` and `test.jsonl`, the same bytes every time."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in splits().items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (directory / f"{name}.jsonl").write_text(lines, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "data/demo"))
