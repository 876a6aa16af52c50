"""Kernels compile for a GPU that is not here; the report tells what is wrong with one."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.gpu.aot import SHARED_LIMIT, Row, main, page, problems
from scripts.gpu.compile import Resources, record
from scripts.gpu.occupancy import NEEDED_BYTES, PROCESSORS
from scripts.gpu.variants import Variant, variants

ROOT = Path(__file__).resolve().parents[3]
SUBSET = ("norm.norm", "rope_kv.rope_kv", "decode_attention.attend", "matmul.matmul", "gemv.gemv")
"""Compiled here, once each, for sm_90."""
COUNTED = ("decode_attention.attend", "matmul.matmul")
"""Whose programs leave something for the last of them."""
COMPILE = """
import re, sys
from scripts.gpu.aot import MOST_STACK_BYTES, SHARED_LIMIT
from scripts.gpu.compile import compile_for, compiled_for, record
from scripts.gpu.occupancy import at_once
from scripts.gpu.variants import variants
ORDER = r"st\\.global|(bar\\.sync)|(atom\\.global\\.gpu\\.acq_rel\\.add)|(ld\\.global\\.cg)"
wanted = set(sys.argv[1:])
for variant in variants():
    for launch in record(variant.call):
        if launch.name in wanted:
            wanted.remove(launch.name)
            found = compile_for(launch, 90)
            assert found.stack_bytes <= MOST_STACK_BYTES, (launch.name, found)
            assert 0 < found.registers <= 255, (launch.name, found)
            assert found.shared_bytes <= SHARED_LIMIT[90], (launch.name, found)
            ptx = compiled_for(launch, 90).asm["ptx"]
            order = "".join("sbal"[m.lastindex or 0] for m in re.finditer(ORDER, ptx))
            print(launch.name, found.load_bytes, found.block_bytes // 1024, at_once(found), order)
        if launch.name == "gemv.gemv" and launch.options["launch_pdl"]:
            ptx = compiled_for(launch, 90).asm["ptx"]
            first = re.search(r"griddepcontrol\\.wait|(ld|st|atom|cp)\\.\\S*global", ptx)
            assert first[0] == "griddepcontrol.wait", first
            assert "griddepcontrol.launch_dependents" in ptx
"""


@pytest.mark.timeout(600)
def test_kernels_compile_without_a_device(tmp_path: Path) -> None:
    """In a process of its own, in which nothing has decided to interpret kernels."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", COMPILE, *SUBSET]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {name: numbers for name, *numbers in map(str.split, done.stdout.splitlines())}
    assert found.keys() == set(SUBSET)
    for name in COUNTED:  # stores, barrier, addition, barrier, loads past the first cache: matmul.leave_part
        assert re.search(r"sb+ab+s*l", found[name][3]), found[name]
        assert found[name][3].count("a") == 1
        assert "l" not in found[name][3].partition("a")[0]
    load, under_way, at_once = map(int, found["gemv.gemv"][:3])
    assert load == 16
    assert under_way * min(at_once, 4096 / 4 / PROCESSORS) * 1024 > NEEDED_BYTES


def test_launches_are_specialized_as_on_a_device() -> None:
    launches = {launch.name: launch for variant in variants() for launch in record(variant.call)}
    attend = launches["decode_attention.attend"]
    assert attend.signature["query_ptr"].startswith("*")
    assert attend.signature["tables_ptr"] == "*i32"
    assert attend.signature["num_rows"] == "i32"
    assert attend.attributes[(0,)] == [["tt.divisibility", 16]]
    assert attend.options["num_warps"] == 4
    assert attend.constants["ITEMS"] == 8
    assert attend.grid == (49, 8)


def test_every_kernel_of_the_tree_is_compiled() -> None:
    """Launched by a variant, or called by a kernel that is."""
    kernels = dict[tuple[str, str], set[str]]()
    for path in (path for folder in ("worker", "scripts") for path in (ROOT / folder).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any(map(_is_jit, node.decorator_list)):
                calls = (call.func for call in ast.walk(node) if isinstance(call, ast.Call))
                kernels[module, node.name] = {func.id for func in calls if isinstance(func, ast.Name)}
    assert len(kernels) > 20
    launches = [launch for variant in variants() for launch in record(variant.call)]
    reached = {(launch.module, launch.function) for launch in launches}
    assert reached <= set(kernels)
    while (
        more := {kernel for kernel in kernels if any(kernel[1] in kernels[caller] for caller in reached)}
        - reached
    ):
        reached |= more
    assert not set(kernels) - reached, "name them in scripts/gpu/variants.py"


def test_kernels_that_overlap_wait_before_anything_else() -> None:
    """What dependent_launch.py's argument rests on."""
    found = set()
    for path in (ROOT / "worker/kernels/triton").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef) or node.name == "wait":
                continue
            if any(map(_is_jit, node.decorator_list)) and "PDL" in [each.arg for each in node.args.args]:
                assert ast.unparse(node.body[0]) == "wait(PDL)", (path.name, node.name)
                found.add(node.name)
    assert found == {"_gemv", "_int4_gemv", "_rope_kv", "_attend"}
    assert all(
        launch.function in found
        for variant in variants()
        for launch in record(variant.call)
        if launch.options.get("launch_pdl")
    )


def _is_jit(decorator: ast.expr) -> bool:
    """@triton.jit, or @triton.jit(…)"""
    return ast.unparse(decorator).startswith("triton.jit")


def test_what_a_kernel_takes_too_much_of() -> None:
    fine, spilled = Resources(96, 0, 1024, 4), Resources(255, 512, 1024, 8)
    large = Resources(64, 0, SHARED_LIMIT[89] + 1, 4)
    row = Row("file.kernel", "bf16", {80: fine, 89: large, 90: spilled})
    found = list(problems(row))
    assert [line.split(":")[0] for line in found] == [
        "file.kernel (bf16) for sm_89",
        "file.kernel (bf16) for sm_90",
    ]
    assert not list(problems(Row("file.kernel", "fp8", {80: "needs sm_89", 90: fine})))
    assert list(problems(Row("file.kernel", "fp8", {90: "CompilationError: no"})))


def test_the_page_names_every_variant_and_target() -> None:
    rows = [Row("file.kernel", "fp8", {80: "needs sm_89", 90: Resources(120, 16, 65536, 4)})]
    text = page(rows, [80, 90])
    assert "| file.kernel | fp8 | needs sm_89 | 120 · 64.0 · 4 +16 B |" in text
    assert "nothing here was run on a GPU" in text


def test_labels_tell_variants_apart() -> None:
    """Of one wrapper: the same label twice would hide a row."""
    found: list[Variant] = list(variants())
    keys = [(variant.label, launch.name) for variant in found for launch in record(variant.call)]
    assert len(set(keys)) == len(keys)


def test_an_unknown_target_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--targets", "75"])
    assert "invalid choice: 75" in capsys.readouterr().err
