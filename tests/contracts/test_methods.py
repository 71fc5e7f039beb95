"""Every method keeps its family's contract by existing."""

import pytest

from autopeft import plugins, testing
from autopeft.errors import Refused

SUBJECTS = {subject.name: subject for subject in testing.method_subjects()}
# Which methods are not for which model; all others must run. A new method runs on all until it is written here.
REFUSED = {
    ("vera", "mobilenet"),  # peft's VeRA knows linear layers only
    ("parallel_adapter", "mobilenet"),  # no sub-layers
    ("prefix", "mobilenet"),  # no attention
}


@pytest.mark.parametrize("check", testing.METHOD_CHECKS, ids=lambda check: check.__name__.removeprefix("check_method_"))
@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("name", plugins.names("methods"))
def test_contract(name, subject, check):
    try:
        check(name, SUBJECTS[subject])
    except Refused as refusal:
        assert (name, subject) in REFUSED, f"{name} refuses {subject}: {refusal}"
        pytest.skip(str(refusal))
    else:
        is_about_the_model = check is not testing.check_method_describes_itself
        assert not is_about_the_model or (name, subject) not in REFUSED, "listed as refused, yet it runs"
