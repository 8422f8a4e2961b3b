"""The job types that exist, by name. A new analysis is one module and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from aiworker.analyses import sofia_image, sofia_text, unified_assistant
from aiworker.analyses.base import Analysis, JobInput
from aiworker.domain.errors import InputRejected, UnknownJobType

ANALYSES: dict[str, Analysis] = {
    analysis.name: analysis for analysis in (sofia_image.ANALYSIS, sofia_text.ANALYSIS, unified_assistant.ANALYSIS)
}

OLD_NAMES = {"food_image": "sofia_image"}
"""What clients and old rows may still call a type."""


def find_analysis(job_type: str, analyses: Mapping[str, Analysis] = ANALYSES) -> Analysis:
    """The analysis of that name, or of that old name. Raises UnknownJobType, which lists them all."""
    analysis = analyses.get(OLD_NAMES.get(job_type, job_type))
    if analysis is None:
        known = ", ".join(sorted(analyses))
        raise UnknownJobType(f"no such job type; there are {known}", types=known)
    return analysis


def checked_input(analysis: Analysis, raw: Any) -> JobInput:
    """`raw` as the analysis's input model. Raises InputRejected, which names each bad field but quotes no value."""
    try:
        # What `model_validate` calls, without what it looks up each time.
        checked: JobInput = analysis.input_model.__pydantic_validator__.validate_python(raw)
        return checked
    except ValidationError as error:
        raise _rejected(error) from None


def read_input(analysis: Analysis, text: str) -> JobInput:
    """The same of JSON, which need not be made into objects first."""
    try:
        read: JobInput = analysis.input_model.__pydantic_validator__.validate_json(text)
        return read
    except ValidationError as error:
        raise _rejected(error) from None


def _rejected(error: ValidationError) -> InputRejected:
    return InputRejected("input does not fit the type", fields=describe(error, prefix="input"))


def describe(error: ValidationError, prefix: str = "") -> str:
    """Each bad field with its problem, without the values, which may be personal."""
    problems = []
    for problem in error.errors(include_input=False, include_url=False, include_context=False):
        path = ".".join(str(part) for part in (prefix, *problem["loc"]) if part != "")
        problems.append(f"{path}: {problem['msg']}")
    return "; ".join(problems)
