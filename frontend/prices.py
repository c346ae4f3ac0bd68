"""What tokens cost."""

from dataclasses import dataclass

from parley.contract.openai import Usage

CENT = 0.01


@dataclass(frozen=True)
class Prices:
    """Prices in US dollars per million tokens."""

    input: float
    output: float

    def cost(self, usage: Usage) -> float:
        """Dollars for one answer."""
        return (usage.prompt_tokens * self.input + usage.completion_tokens * self.output) / 1_000_000


def dollars(amount: float) -> str:
    """An amount for people: in cents, and to a ten-thousandth of one where it is less than a cent."""
    return f"${amount:.6f}" if 0 < amount < CENT else f"${amount:.2f}"
