"""What may be spent: time, steps, tokens, money or energy.

    "30m" | "5000steps" | "20Mtokens" | "0.50EUR@0.12" | "30Wh@45" -> Budget.parse -> Budget(amount, unit) -> seconds

`@` states the price per hour of money and the watts of energy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import isfinite

from nomoat.core.errors import ConfigError

UNITS = ("seconds", "steps", "tokens", "money", "watt_hours")
EXAMPLES = "write for example 30m, 2h, 90s, 1h30m, 5000steps, 20Mtokens, 0.50EUR@0.12 (per hour) or 30Wh@45 (watts)"

_SECONDS = {"s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "d": 86400}
_SECONDS |= {"day": 86400}
_SCALE = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
_SIGNS = {"€": "EUR", "$": "USD", "£": "GBP", "¥": "JPY"}

_NUMBER = r"(\d+(?:_\d+)*(?:\.\d+)?|\.\d+)"
_TIME_PART = re.compile(rf"{_NUMBER}\s*([a-z]+)\s*")
_COUNT = re.compile(rf"{_NUMBER}\s*([kMGBT]?)\s*(step|token)s?")
_ENERGY = re.compile(rf"{_NUMBER}\s*([kMm]?)Wh")
_MONEY = re.compile(rf"{_NUMBER}\s*([A-Z]{{3}})")
_RATE = re.compile(rf"(?:[A-Z]{{3}}|[{''.join(_SIGNS)}])?\s*{_NUMBER}\s*(?:[A-Z]{{3}}|W)?(?:/h)?")


@dataclass(frozen=True)
class Budget:
    """How much may be spent, and of what.

    Args:
        text: as the user wrote it.
        amount: seconds, optimizer steps, training tokens, money in `currency`, or watt-hours.
        unit: one of `UNITS`.
        currency: three letters, for money.
        price_per_hour: what the machine costs an hour in that currency, for money.
        watts: what the machine draws as the user states it, for energy where no meter can be read.
        most_steps: steps at most, however much is left: passes over little data do harm in the end.

    Raises:
        ConfigError: nothing to spend, an unknown unit, or money without a price.
    """

    text: str
    amount: float
    unit: str
    currency: str = ""
    price_per_hour: float | None = None
    watts: float | None = None
    most_steps: int | None = None

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ConfigError(f"a budget has no unit `{self.unit}`", f"the units are {', '.join(UNITS)}", EXAMPLES)
        least = 1.0 if self.unit in ("steps", "tokens") else 0.0
        if not isfinite(self.amount) or self.amount <= 0 or self.amount < least:
            raise ConfigError(f"a budget of `{self.text}` is a budget of nothing", "nothing can be trained", EXAMPLES)
        for name in ("price_per_hour", "watts"):
            rate = getattr(self, name)
            if rate is not None and not (isfinite(rate) and rate > 0):
                raise ConfigError(f"{name} must be above zero", f"it is {rate}", EXAMPLES)
        if self.unit == "money" and self.price_per_hour is None:
            raise ConfigError(
                f"a budget of `{self.text}` needs the price of an hour of this machine",
                "money buys time, and only you know what yours costs",
                f"write `{self.text}@0.12` for 0.12 {self.currency or 'EUR'} an hour",
            )

    @classmethod
    def parse(cls, text: str, price_per_hour: float | None = None, watts: float | None = None) -> Budget:
        """Read a budget such as `30m`, `5000steps`, `20Mtokens`, `0.50EUR@0.12` or `30Wh@45`.

        Args:
            text: the budget; `@` and a number state the price per hour of money, or the watts of energy.
            price_per_hour: the same as `@` for money; `@` wins.
            watts: the same as `@` for energy; `@` wins.

        Raises:
            ConfigError: it cannot be read, or there is nothing to spend.
        """
        body, at, rate_text = text.strip().partition("@")
        body = body.strip()
        rate = _RATE.fullmatch(rate_text.strip()) if at else None
        amount, unit, currency = _read(body)
        if not unit or (at and not (rate and unit in ("money", "watt_hours"))):
            raise ConfigError(f"`{text}` is not a budget I can read", "", EXAMPLES)
        stated = float(rate[1]) if rate else None
        return cls(
            text=text.strip(),
            amount=amount,
            unit=unit,
            currency=currency,
            price_per_hour=(price_per_hour if stated is None else stated) if unit == "money" else None,
            watts=(watts if stated is None else stated) if unit == "watt_hours" else None,
        )

    def bounded(self, steps: int, why: str) -> tuple[int, str]:
        """The steps that were reckoned, or `most_steps`, with the reason."""
        if self.most_steps is None or steps <= self.most_steps:
            return steps, why
        return self.most_steps, f"no more than these, though there is time for {steps:,}: {why}"

    def seconds(self, power_watts: float | None = None) -> float | None:
        """Seconds that this budget buys, or None for steps and tokens, which no clock bounds.

        Args:
            power_watts: what the machine draws, as measured; it is preferred to what the user stated.

        Raises:
            ConfigError: energy, and the power is neither measured nor stated.
        """
        if self.unit == "seconds":
            return self.amount
        if self.unit == "money":
            assert self.price_per_hour is not None
            return self.amount / self.price_per_hour * 3600
        if self.unit == "watt_hours":
            power = power_watts or self.watts
            if not power:
                raise ConfigError(
                    f"a budget of `{self.text}` needs to know what this machine draws",
                    "no energy meter (RAPL, NVML) can be read here",
                    f"state the watts: `{self.text}@45` for 45 W",
                )
            return self.amount / power * 3600
        return None


def _read(body: str) -> tuple[float, str, str]:
    """Amount, unit and currency; an empty unit where the text is none of ours."""
    for sign, name in _SIGNS.items():
        if sign in body:
            body = f"{body.replace(sign, '', 1).strip()}{name}"
            break
    sign_free = body.lstrip("+-").strip()
    factor = -1.0 if body.startswith("-") else 1.0
    if counted := _COUNT.fullmatch(sign_free):
        return factor * _number(counted[1]) * _SCALE[counted[2]], f"{counted[3]}s", ""
    if energy := _ENERGY.fullmatch(sign_free):
        return factor * _number(energy[1]) * {"": 1.0, "k": 1e3, "M": 1e6, "m": 1e-3}[energy[2]], "watt_hours", ""
    if money := _MONEY.fullmatch(sign_free):
        return factor * _number(money[1]), "money", money[2]
    parts = list(_TIME_PART.finditer(sign_free))
    if parts and "".join(part[0] for part in parts) == sign_free:
        units = [part[2] if part[2] in _SECONDS else part[2].removesuffix("s") for part in parts]
        if all(unit in _SECONDS for unit in units):
            total = sum(_number(part[1]) * _SECONDS[unit] for part, unit in zip(parts, units, strict=True))
            return factor * total, "seconds", ""
    return 0.0, "", ""


def _number(text: str) -> float:
    return float(text.replace("_", ""))
