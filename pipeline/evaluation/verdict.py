"""The verdict: two sentences that say aloud what the scores mean, and no more than they show. Owns this wording."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A drop below this is no obedience worth the name, however sure: a tenth of a decibel is 2% of the squared error.
NEGLIGIBLE_DB = 0.1


def verdict(metrics: Mapping[str, Any]) -> str:
    """Two sentences on the dictionary that `score` builds: how well the model draws, and whether it obeys its actions.

    A difference is called beyond chance only where its 95% interval over episodes leaves out zero, also once rounded
    to the digits that the sentence gives.
    """
    return f"{_drawing(metrics)} {_obeying(metrics)}"


def _drawing(metrics: Mapping[str, Any]) -> str:
    over = "one episode" if metrics["episodes"] == 1 else f"{metrics['episodes']} episodes"
    psnr, moving = (metrics["metrics"][name]["recorded"] for name in ("psnr", "moving_psnr"))
    # A background at rest can make a copied frame look good, so what moves decides wherever something does.
    name, where = ("psnr", "") if moving["mean"] is None else ("moving_psnr", " where something moves")
    copy, ceiling = ((gains or {}).get(name) for gains in (metrics["gains"][of] for of in ("copy", "ceiling")))
    if not _is_known(copy):
        reached = f"{_decimal(psnr['mean'])} dB{_first_interval(psnr)}"
        return f"Over {over} its rollouts reach a PSNR of {reached} (copying the first frame was not compared)."
    clauses = [told for told in (_over_copy(copy, where), _below_ceiling(ceiling)) if told]
    return f"Over {over} its rollouts are {', and '.join(clauses)}."


def _over_copy(gain: Mapping[str, Any], where: str) -> str:
    side = "better" if gain["mean"] >= 0 else "worse"
    interval = _first_interval(gain, turned=gain["mean"] < 0)
    return f"{_decimal(abs(gain['mean']))} dB{interval} {side} than copying the first frame{where}, {_chance(gain)}"


def _below_ceiling(gap: Mapping[str, Any] | None) -> str:
    if not _is_known(gap):
        return ""
    side = "below" if gap["mean"] >= 0 else "above"
    return f"{_decimal(abs(gap['mean']))} dB {side} the ceiling of its own VAE"


def _obeying(metrics: Mapping[str, Any]) -> str:
    drops = metrics["drops"]["other_actions"] or {}
    names = [name for name in ("moving_psnr", "psnr") if _is_known(drops.get(name))]
    agreement = _agreement(metrics["agreement"])
    if not names:
        return f"Whether it obeys was not measured, for want of another episode's actions; {agreement}."
    where = " where something moves" if names[0] == "moving_psnr" else ""
    return f"{_drop(drops[names[0]], where)}; {agreement}."


def _drop(drop: Mapping[str, Any], where: str) -> str:
    mean = drop["mean"]
    change = f"{'loses' if mean >= 0 else 'gains'} {_decimal(abs(mean), 2)} dB"
    told = f"Told another episode's actions it {change}{_interval(drop, digits=2, turned=mean < 0)}{where}"
    if drop["low"] is None:
        return f"{told}, and one episode cannot tell that from chance"
    if _holds_zero(drop, 2):
        return f"{told}: as far as these episodes can tell, its rollouts do not depend on the actions"
    if abs(mean) < NEGLIGIBLE_DB:
        return f"{told}: beyond chance, but its rollouts hardly depend on the actions"
    if mean < 0:
        return f"{told}: beyond chance and the wrong way round, so check how its actions are normalised"
    return f"{told}: beyond chance, so it obeys its actions"


def _agreement(agreement: Mapping[str, Any] | None) -> str:
    """It agrees with itself where always guessing the mean action would be no nearer to the actions given."""
    if agreement is None:
        return "no actions were recovered from its rollouts"
    parts = [_translation(agreement["translation"]), _rotation(agreement["rotation"]), _gripper(agreement["gripper"])]
    known = [part for part in parts if part]
    if not known:
        return "the recovered actions have neither poses in metres nor grippers to sum up"
    better = [is_better for _, is_better in known]
    how = "agrees" if all(better) else "agrees only in part" if any(better) else "does not agree"
    return f"it {how} with itself: inverse dynamics finds the given actions again {known[0][0]}"


def _translation(group: Mapping[str, Any] | None) -> tuple[str, bool] | None:
    if group is None or group["unit"] != "m":
        return None
    ours, guess = group["rmse"], group["always_the_mean"]["rmse"]
    return f"to {_short(ours * 1000)} mm (guessing their mean: {_short(guess * 1000)} mm)", ours <= guess


def _rotation(group: Mapping[str, Any] | None) -> tuple[str, bool] | None:
    guess = group and group["always_the_mean"]["rmse"]
    if group is None or group["rmse"] is None or guess is None:
        return None
    return f"to {_short(group['rmse'])} rad (guessing their mean: {_short(guess)} rad)", group["rmse"] <= guess


def _gripper(group: Mapping[str, Any] | None) -> tuple[str, bool] | None:
    if group is None:
        return None
    ours, guess = group["agreement"], group["always_the_mean"]["agreement"]
    return f"with the gripper on the same side in {ours:.0%} of frames (guessing: {guess:.0%})", ours >= guess


def _is_known(entry: Mapping[str, Any] | None) -> bool:
    return entry is not None and entry["mean"] is not None


def _first_interval(entry: Mapping[str, Any], *, turned: bool = False) -> str:
    """The same as `_interval`, and what it is: said once."""
    return _interval(entry, turned=turned).replace("(", "(95% interval ")


def _interval(entry: Mapping[str, Any], *, digits: int = 1, turned: bool = False) -> str:
    """` (2.1 to 4.3)`; `turned` where the sentence states the opposite sign."""
    if entry["low"] is None:
        return ""
    low, high = (-entry["high"], -entry["low"]) if turned else (entry["low"], entry["high"])
    return f" ({_decimal(low, digits)} to {_decimal(high, digits)})"


def _chance(entry: Mapping[str, Any]) -> str:
    if entry["low"] is None:
        return "which one episode cannot tell from chance"
    return "which may be chance" if _holds_zero(entry, 1) else "which is beyond chance"


def _holds_zero(entry: Mapping[str, Any], digits: int) -> bool:
    return round(entry["low"], digits) <= 0 <= round(entry["high"], digits)


def _decimal(value: float, digits: int = 1) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0 turns -0.0 into 0.0


def _short(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}"
