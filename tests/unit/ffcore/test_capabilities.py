"""Matching what a job requires with what a worker has."""

from __future__ import annotations

import pytest

from ffcore.capabilities import Capabilities
from ffcore.errors import InvalidArgument


@pytest.mark.parametrize(
    ("required", "have", "met"),
    [
        ("gpu", "gpu", True),
        ("gpu", "cpu", False),
        ("gpu", "gpu2", False),
        ("torch>=2.3", "torch==2.4", True),
        ("torch>=2.3", "torch=2.3", True),
        ("torch>=2.3", "torch==2.2.9", False),
        ("torch>=2.3", "torch==2.10", True),
        ("torch<2.3", "torch==2.10", False),
        ("torch<=2.3", "torch==2.3.0", True),
        ("torch>2.3", "torch==2.3", False),
        ("torch>2.3", "torch==2.3.1", True),
        ("torch<2", "torch==1.13", True),
        ("torch==2.0", "torch==2", True),
        ("torch=2", "torch==2", True),
        ("torch!=2.3", "torch==2.4", True),
        ("torch!=2.3", "torch==2.3", False),
        ("torch!=2.3", "jax==1", False),
        ("torch>=2", "torch", False),
        ("torch", "torch==2.4", True),
        ("cuda==12a", "cuda==12a", True),
        ("cuda>=12a", "cuda==12b", False),
        ("cuda!=12a", "cuda==12b", True),
        ("region=eu", "region=eu", True),
        ("region=eu", "region=us", False),
    ],
)
def test_a_token_is_met_by(required: str, have: str, met: bool) -> None:
    assert Capabilities({have}).meets(required) is met


def test_a_set_is_served_when_all_of_it_is_met() -> None:
    worker = Capabilities({"gpu", "torch==2.4", "torch==1.13"})
    assert worker.serves({"gpu", "torch>=2.3", "torch<2"})
    assert not worker.serves({"gpu", "tpu"})
    assert worker.serves(())
    assert not Capabilities(()).serves({"gpu"})


@pytest.mark.parametrize("token", ["", "a b", "a,b", "a\x00", "a\x7f", "torch>=2", "torch!=2"])
def test_a_worker_that_does_not_say_what_it_has_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument):
        Capabilities({token})


def test_one_string_is_refused_because_it_would_be_taken_for_its_letters() -> None:
    with pytest.raises(InvalidArgument, match="use a set"):
        Capabilities("gpu")


def test_a_worker_has_no_more_than_a_job_may_require() -> None:
    assert len(Capabilities({f"t{n}" for n in range(256)}).tokens) == 256
    with pytest.raises(InvalidArgument, match="the limits are 256 tokens"):
        Capabilities({f"t{n}" for n in range(257)})
    with pytest.raises(InvalidArgument, match="4096 bytes"):
        Capabilities({"x" * 4_097})
