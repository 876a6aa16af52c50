"""Options from flags, environment and file; every mistake stops the start and says what was meant."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import StartupError
from protocol.options import ServeOptions
from scripts.bench import cli as bench
from scripts.bench.commands import COMMANDS as BENCHMARKS
from scripts.chat import CHAT
from scripts.command_options import ROOTS
from scripts.completion import COMMANDS
from scripts.flags import Command, as_flags, parse_serve
from scripts.options import Option, declared_options
from scripts.soak.cli import SOAK


def refusal(*argv: str, **environ: str) -> StartupError:
    with pytest.raises(StartupError) as caught:
        parse_serve(argv, environ)
    return caught.value


def toml(tmp_path: Path, text: str) -> str:
    path = tmp_path / "tern.toml"
    path.write_text(text)
    return str(path)


def test_nothing_given_is_all_defaults() -> None:
    assert parse_serve([], {"HOME": "/root"}) == ServeOptions()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_option_is_a_flag_with_help(command: Command[Any]) -> None:
    options = declared_options(command.root)
    assert len({option.name for option in options}) == len(options)
    assert len({option.variable for option in options}) == len(options)
    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit):
        command.parser().parse_args(["--help"])
    text = " ".join(out.getvalue().split())
    for option in options:
        assert option.help, option.name
        assert f"{option.flag} " in text or f"{option.flag}," in text
        assert option.help in text


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_option_has_a_variable_and_a_key_and_a_flag_beats_both(
    command: Command[Any], tmp_path: Path
) -> None:
    def value(root: Any, option: Option) -> object:
        return getattr(getattr(root, option.section), option.name)

    for option in declared_options(command.root):
        first, second = two_values(option)
        if option.is_switch:
            flags = [option.flag if first == "on" else option.flag.replace("--", "--no-", 1)]
        else:
            flags = [option.flag, first]
        section = f"[{option.section}]\n"
        quoted = f"{option.name} = {json.dumps(second)}"
        if option.is_list:
            quoted = f"{option.name} = [{json.dumps(second)}]"
        path = toml(tmp_path, section + quoted)
        want_first, want_second = (option.read(text, "x") for text in (first, second))
        assert want_first != want_second
        by_file, _, _ = command._parse(["--config", path], {})
        by_variable, _, _ = command._parse(["--config", path], {option.variable: first})
        by_flag, given, _ = command._parse(["--config", path, *flags], {option.variable: second})
        assert value(by_file, option) == want_second, option.name
        assert value(by_variable, option) == want_first, option.name
        assert value(by_flag, option) == want_first, option.name
        assert given == {option.name}


def test_what_a_command_does_not_know_is_handed_on(tmp_path: Path) -> None:
    path = toml(tmp_path, "max_num_seqs = 3\n[soak]\nstreams = 5\n[bench_model]\nconcurrency = [2, 4]\n")
    soak, rest = SOAK.parse_own(["--minutes", "1", "--worker", "stub", "--config", path], {})
    assert (soak.soak.minutes, soak.soak.streams) == (1, 5)
    assert rest == ["--worker", "stub", "--config", path]
    assert parse_serve(rest, {}).scheduler.max_num_seqs == 3
    model = BENCHMARKS["model"]
    assert model.parse_own(["--config", path], {})[0].bench_model.concurrency == (2, 4)
    environ = {"TERN_BENCH_MODEL_CONCURRENCY": "1,8"}
    assert model.parse_own([], environ)[0].bench_model.concurrency == (1, 8)
    peers, rest = BENCHMARKS["peers"].parse_own(
        ["folder", "--only", "a", "b", "--threads", "2", "--port", "1"], {}
    )
    assert (peers.bench_peers.folder, peers.bench_peers.only, rest) == ("folder", ("a", "b"), ["--port", "1"])


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["overhead", "--stream", "5"], "unknown flag --stream"),
        (["kernels", "--port", "1"], "unknown flag --port"),
        (["overhed"], "unknown benchmark overhed; did you mean overhead"),
        (["peers"], "the folder for the engines' environments is missing"),
        (["peers", "x", "--only", "vlm"], "--only vlm: expected one of"),
    ],
)
def test_benchmarks_refuse_what_nobody_knows(argv: list[str], told: str) -> None:
    with pytest.raises(StartupError, match=told):
        bench.main(argv, {})


@pytest.mark.parametrize(
    ("text", "told"), [("1,x", "whole number"), ("0", ">= 1"), ("1,,2", "whole number"), ("", "")]
)
def test_lists_of_numbers(text: str, told: str) -> None:
    environ = {"TERN_BENCH_KERNELS_ROWS": text}
    if not told:
        assert BENCHMARKS["kernels"].parse([], environ)[0].bench_kernels.rows
        return
    with pytest.raises(StartupError, match=told):
        BENCHMARKS["kernels"].parse([], environ)


def two_values(option: Option) -> tuple[str, str]:
    """As text, both allowed."""
    if option.is_switch:
        return "on", "off"
    if option.choices:
        return option.choices[0], option.choices[-1]
    if option.single is float:
        return "0.5", "0.25"
    if option.name == "vocab_size":
        return "301", "302"
    if option.single is int:
        large = {"max_body_bytes": ("4096", "8192"), "max_num_batched_tokens": ("4096", "8192")}
        large |= {"journal_bytes": ("131072", "262144"), "quantization_group": ("64", "128")}
        return large.get(option.name, ("3", "7"))
    slash = "/" if option.name == "root_path" else ""
    return f"{slash}one", f"{slash}two"


def test_serve_s_options_survive_being_flags_again() -> None:
    argv = ["m", "--served-model-name", "a", "b", "--no-mmap", "--max-model-len", "8k", "--watermark", "0.5"]
    options = parse_serve(argv, {"TERN_JOURNAL": "some where", "TERN_QUANTIZATION": "int8"})
    assert options != ServeOptions()
    assert parse_serve(as_flags(options), {}) == options
    assert as_flags(ServeOptions()) == []


def test_one_file_and_one_environment_serve_all_commands(tmp_path: Path) -> None:
    path = toml(tmp_path, 'model = "served"\napi_key = ["k"]\n[chat]\nmodel = "asked"\ntemperature = 0.0\n')
    environ = {"TERN_CONFIG": path, "TERN_CHAT_TOP_P": "0.5", "TERN_PORT": "1", "TERN_COMPLETE_SEED": "3"}
    serve, (chat, _) = parse_serve([], environ), CHAT.parse([], environ)
    assert (serve.model.model, serve.frontend.api_key, serve.frontend.port) == ("served", ("k",), 1)
    assert (chat.chat.model, chat.chat.temperature, chat.chat.top_p) == ("asked", 0.0, 0.5)
    assert chat.connection.api_key == ("k",)
    with pytest.raises(StartupError, match="temperature: unknown option"):
        CHAT.parse(["--config", toml(tmp_path, "temperature = 0")], {})
    with pytest.raises(StartupError, match=r"\[chat\] heat: unknown option"):
        parse_serve(["--config", toml(tmp_path, "[chat]\nheat = 0")], {})


def test_every_command_is_among_those_whose_names_are_known() -> None:
    assert {command.root for command in COMMANDS} == set(ROOTS)


def test_every_default_can_be_read_back() -> None:
    for option in declared_options():
        if shown := option.shown_default():
            assert option.read(shown, option.flag) == option.default


def test_flags_of_each_type() -> None:
    argv = "folder --served-model-name a b --max-model-len 8k --kv-cache-memory 512MiB -tp 2 --watermark 0.5"
    options = parse_serve([*argv.split(), "--no-enable-prefix-caching", "--dtype=float32"], {})
    assert options.model.model == "folder"
    assert options.model.served_model_name == ("a", "b")
    assert options.model.max_model_len == 8192
    assert options.model.dtype == "float32"
    assert options.cache.kv_cache_memory == 512 << 20
    assert options.cache.enable_prefix_caching is False
    assert options.parallel.tensor_parallel_size == 2
    assert options.scheduler.watermark == 0.5


def test_a_list_may_be_given_by_one_flag_or_by_several() -> None:
    options = parse_serve(["--lora", "a=x", "--lora", "b=y", "c=z"], {"TERN_LORA": "d=w"})
    assert options.model.lora == ("a=x", "b=y", "c=z")
    assert parse_serve([], {"TERN_LORA": "a=x,b=y"}).model.lora == ("a=x", "b=y")
    assert parse_serve(as_flags(options), {}) == options


@pytest.mark.parametrize(
    ("text", "count"), [("4GB", 4 * 10**9), ("1M", 1 << 20), ("1.5KiB", 1536), ("7", 7), ("2 gib", 2 << 30)]
)
def test_bytes(text: str, count: int) -> None:
    assert parse_serve(["--kv-cache-memory", text], {}).cache.kv_cache_memory == count


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    path = toml(tmp_path, "port = 1\nblock-size = 32\nmax_num_seqs = 7\n")
    environ = {"TERN_PORT": "2", "TERN_BLOCK_SIZE": "64", "TERN_CONFIG": path}
    options = parse_serve(["--port", "3"], environ)
    assert (options.frontend.port, options.cache.block_size, options.scheduler.max_num_seqs) == (3, 64, 7)


def test_environment_lists_and_switches() -> None:
    options = parse_serve([], {"TERN_API_KEY": "one,two", "TERN_ASYNC_SCHEDULING": "off", "TERN_HOST": ""})
    assert options.frontend.api_key == ("one", "two")
    assert options.scheduler.async_scheduling is False
    assert options.frontend.host == "127.0.0.1"


def test_what_tests_tell_workers_is_no_option() -> None:
    assert parse_serve([], {"TERN_FAULTS": "hang:step=3", "TERN_FAULTS_DIR": "/"}) == parse_serve([], {})


def test_file_in_sections(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        '[model]\nmodel = "x"\nmax-model-len = "2k"\n'
        '[frontend]\napi_key = ["k"]\n[cache]\nenable_prefix_caching = false',
    )
    options = parse_serve(["--config", path], {})
    assert (options.model.model, options.model.max_model_len) == ("x", 2048)
    assert options.frontend.api_key == ("k",)
    assert options.cache.enable_prefix_caching is False


def test_flat_model_key(tmp_path: Path) -> None:
    assert parse_serve(["--config", toml(tmp_path, 'model = "x"')], {}).model.model == "x"


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--max-num-seq", "4"], ["--max-num-seq;", "did you mean --max-num-seqs?"]),
        (["--no-prefix-caching"], ["did you mean --no-enable-prefix-caching?"]),
        (["--quantum=3"], ["unknown flag --quantum"]),
        (["one", "two"], ["unexpected argument two"]),
        (["one", "--model", "two"], ["two models", "one", "two"]),
        (["--max-num-seqs", "0"], ["--max-num-seqs 0", ">= 1"]),
        (["--port", "80000"], ["--port 80000", "<= 65535"]),
        (["--port", "http"], ["--port http", "whole number"]),
        (["--port"], ["--port", "expected one argument"]),
        (["--dtype", "bfloat"], ["--dtype bfloat", "float32", "did you mean bfloat16?"]),
        (["--watermark", "nan"], ["--watermark nan", "finite"]),
        (["--kv-cache-memory", "4 gigs"], ["--kv-cache-memory 4 gigs", "GiB"]),
        (["--max-model-len", "1.3k"], ["--max-model-len 1.3k", "8k"]),
    ],
)
def test_mistakes_in_flags(argv: list[str], parts: list[str]) -> None:
    message = refusal(*argv).message
    assert all(part in message for part in parts), message


def test_options_that_contradict_each_other_name_both_and_the_remedy() -> None:
    error = refusal("--max-num-batched-tokens", "64")
    assert "--max-num-batched-tokens 64" in error.message
    assert "--max-num-seqs 256" in error.message
    assert "256 or more" in error.hint


@pytest.mark.parametrize(
    ("environ", "parts"),
    [
        ({"TERN_MAX_NUM_SEQ": "4"}, ["TERN_MAX_NUM_SEQ;", "did you mean TERN_MAX_NUM_SEQS?"]),
        ({"TERN_PORT": "tcp://10.0.0.1:80"}, ["TERN_PORT= tcp://10.0.0.1:80", "whole number"]),
        ({"TERN_ENABLE_CHUNKED_PREFILL": "maybe"}, ["TERN_ENABLE_CHUNKED_PREFILL= maybe", "true"]),
    ],
)
def test_mistakes_in_the_environment(environ: dict[str, str], parts: list[str]) -> None:
    message = refusal(**environ).message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("max_num_seq = 4", ["max_num_seq: unknown option", "did you mean max_num_seqs?"]),
        ("[schedule]\nmax_num_seqs = 4", ["unknown section [schedule]", "did you mean scheduler?"]),
        ("[cache]\nport = 4", ["[cache] port", "belongs to [frontend]"]),
        ("port = 1\n[frontend]\nport = 2", ["port", "given twice"]),
        ('port = "x"', ["port = x", "whole number"]),
        ("port = true", ["port = True", "expected int"]),
        ("enable_prefix_caching = 1", ["enable_prefix_caching = 1", "expected bool"]),
        ("port =", ["not a TOML file"]),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = toml(tmp_path, text)
    message = refusal("--config", path).message
    assert path in message
    assert all(part in message for part in parts), message


def test_a_file_that_is_not_there() -> None:
    assert "/nowhere.toml: No such file" in refusal("--config", "/nowhere.toml").message


def test_a_wrong_secret_is_not_shown(tmp_path: Path) -> None:
    error = refusal("--config", toml(tmp_path, 'api_key = ["hunter2", ""]'))
    assert "hunter2" not in error.message
    assert "not empty" in error.message
