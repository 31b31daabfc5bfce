"""Messages to a shop, generated: what they are about is known, and each kind borrows words of the others."""

from __future__ import annotations

import random
from typing import NamedTuple

LABELS = ("Billing", "Delivery", "Account")

_ABOUT = {
    "Billing": (
        ("the invoice", "my last bill", "the refund", "the card payment", "the receipt"),
        ("was charged twice", "shows the wrong amount", "has not been paid back", "lists a fee that I do not owe"),
    ),
    "Delivery": (
        ("the parcel", "my order", "the courier", "the box", "the shipment"),
        ("never arrived", "was left in the rain", "went to the wrong street", "is late by a week", "came damaged"),
    ),
    "Account": (
        ("my password", "the login page", "my profile", "the confirmation mail", "the app"),
        ("does not work", "keeps asking for a code", "was locked", "forgets who I am", "rejects my address"),
    ),
}
_BEFORE = ("Hello,", "Hi there,", "Good morning.", "Once more:", "I write because", "Please help,", "")
_AFTER = ("Can you look into it?", "I pay for this!", "My order number is 1234.", "Thanks.", "Send me a mail.", "")


class Ticket(NamedTuple):
    text: str
    label: str


def tickets(number: int, *, seed: int = 0) -> list[Ticket]:
    """Each kind as often as the others, in a mixed order."""
    rng = random.Random(seed)
    made = []
    for index in range(number):
        label = LABELS[index % len(LABELS)]
        things, troubles = _ABOUT[label]
        parts = (rng.choice(_BEFORE), rng.choice(things), rng.choice(troubles) + ".", rng.choice(_AFTER))
        made.append(Ticket(" ".join(part for part in parts if part), label))
    rng.shuffle(made)
    return made
