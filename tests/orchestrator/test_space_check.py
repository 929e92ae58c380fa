"""`archfront space check` on the kernels that a space's choices would run on."""

import json
import subprocess
import sys
from pathlib import Path

ARCHFRONT = Path(sys.executable).with_name("archfront")


def check(folder: Path, text: str, *options: str) -> str:
    (folder / "space.yaml").write_text(text)
    command = [str(ARCHFRONT), "space", "check", "space.yaml", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_a_space_with_kernels_everywhere_says_so(tmp_path: Path, small_space: str) -> None:
    told = check(tmp_path, small_space)
    assert "every choice has a kernel on sm_90" in told


def test_a_choice_without_a_kernel_is_told_with_its_law(tmp_path: Path, small_space: str) -> None:
    cached = small_space.replace("[ffn.up, ffn.down]", "[kv_cache]")
    cached = cached.replace("profile:", "profile:\n  target: a100_sxm_80gb")
    told = check(tmp_path, cached)
    law = "decode_split in float8_e4m3fn does not run on sm_80, got K=32, V=32"
    assert f"precision.fp8 ['kv_cache'] cannot run on sm_80 (decode): {law}" in told
    (plain,) = json.loads(check(tmp_path, cached, "--json"))["without_kernel"]
    assert (plain["choice"], plain["arch"], plain["constraints"]) == (
        "precision.fp8",
        "sm_80",
        {"decode": law},
    )
