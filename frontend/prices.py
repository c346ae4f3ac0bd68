"""What tokens cost."""

from dataclasses import dataclass

from parley.contract.openai import Usage


@dataclass(frozen=True)
class Prices:
    """Prices in US dollars per million tokens."""

    input: float
    output: float

    def cost(self, usage: Usage) -> float:
        """Dollars for one answer."""
        return (usage.prompt_tokens * self.input + usage.completion_tokens * self.output) / 1_000_000


def dollars(amount: float) -> str:
    """An amount for people: two significant digits below a cent, cents above."""
    if amount == 0 or amount >= 0.01:
        return f"${amount:.2f}"
    return f"${amount:.2g}" if amount >= 0.0001 else f"${amount:.7f}".rstrip("0")
