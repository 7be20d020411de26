"""Formatting of sizes, times, counts, lists and untrusted text for users."""

import pytest

from laptime.text import (
    binary_size,
    byte_size,
    clock,
    counted,
    duration,
    escape_control_chars,
    format_os_error,
    join_first_three,
    join_nonempty,
    percent,
    short_name,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (12_345, "12 kB"), (7_600_000, "8 MB"), (2.5e9, "2.5 GB"), (3e15, "3000.0 TB")],
)
def test_a_size_is_in_the_largest_unit_that_fits(num_bytes, text):
    assert byte_size(num_bytes) == text


def test_a_size_is_in_the_unit_that_is_named():
    assert byte_size(1_234_567_890, "GB") == "1.2 GB"
    assert byte_size(1_234_567_890, "GB", 2) == "1.23 GB"
    assert byte_size(19_400, "MB", 3) == "0.019 MB"
    assert byte_size(1_500_000, "MB", 0) == "2 MB"


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(48 * 2**10, "48 KiB"), (2**20, "1 MiB"), (3 * 2**19, "1.5 MiB"), (15.55 * 2**30, "15.6 GiB")],
)
def test_memory_is_in_powers_of_two(num_bytes, text):
    assert binary_size(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text", "on_a_clock"),
    [
        (8.4, "8 s", "0:08"),
        (99.4, "99 s", "1:39"),
        (720, "12 min", "12:00"),
        (12_240, "3.4 h", "3:24:00"),
    ],
)
def test_durations(seconds, text, on_a_clock):
    assert (duration(seconds), clock(seconds)) == (text, on_a_clock)


def test_counts_have_a_plural():
    assert [counted(number, "run") for number in (0, 1, 2000)] == ["0 runs", "1 run", "2000 runs"]
    assert (counted(2000, "image", ","), counted(1.5, "core", "g")) == ("2,000 images", "1.5 cores")


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0.0%"), (0.004, "0.4%"), (0.0094, "0.9%"), (0.0097, "1%"), (0.424, "42%"), (1.5, "150%")]
)
def test_shares_below_a_percent_have_a_decimal(share, text):
    assert percent(share) == text


def test_lists():
    assert join_nonempty(["a", "", None, 2]) == "a, 2"
    assert join_first_three(["a", "b", "c"]) == "a; b; c"
    assert join_first_three(list("abcde")) == "a; b; c, and 2 more"


def test_the_short_name_of_a_key():
    assert [short_name(key) for key in ("strategy.world_size", "optimizer.lr", "seed")] == ["ws", "lr", "seed"]


def test_control_characters_are_escaped():
    assert escape_control_chars("a\x1b[31m\nb é") == "a\\x1b[31m\\nb é"


def test_an_error_of_the_system_names_the_file_and_what_to_do():
    assert format_os_error(OSError(28, "No space left on device", "run.json")) == "run.json: No space left on device."
    assert "ulimit -n" in format_os_error(OSError(24, "Too many open files"))
