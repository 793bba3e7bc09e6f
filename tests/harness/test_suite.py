"""Suite files: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from harness.errors import HarnessError, MissingDataError, SuiteError
from harness.host import Host, load_host
from harness.suite import Suite, find_suite, load_suite, parse_suite, shipped_suites

TOY = str(Path(__file__).parents[1] / "toy" / "toy_plugin.py")

HEAD = """
[suite]
name = "s"
dataset = "digits"
[models.a]
plugin = "torch"
factory = "nets:make"
"""
CLEAN = """
[[threats]]
plugin = "clean"
"""


@pytest.fixture(scope="module")
def toys() -> Host:
    return load_host([TOY])


def parse(text: str, host: Host) -> Suite:
    return parse_suite(tomllib.loads(text), host, source="s.toml")


def problems(text: str, host: Host) -> list[str]:
    with pytest.raises(SuiteError) as caught:
        parse(text, host)
    assert str(caught.value).splitlines()[0].startswith("s.toml: ")
    assert all("\n" not in problem for problem in caught.value.problems)
    return list(caught.value.problems)


def labels(threats: str, host: Host) -> list[str]:
    return [t.label for t in parse(HEAD + threats, host).threats]


# What is accepted


def test_quickstart_loads_by_name_and_by_path(toys: Host) -> None:
    by_name = load_suite("quickstart", toys)
    by_path = load_suite(shipped_suites() / "quickstart.toml", toys)
    assert by_name.resolved() == by_path.resolved()
    assert [t.label for t in by_name.threats][:2] == ["clean", "pgd[norm=linf,eps=0.1,restarts=2]"]


def test_defaults_are_filled_in(toys: Host) -> None:
    resolved = parse(HEAD + CLEAN, toys).resolved()
    assert resolved["suite"]["shard_size"] == 256
    assert resolved["suite"]["seed"] == 0
    assert resolved["gate"] is None


def test_a_fraction_is_a_number_and_keeps_its_text(toys: Host) -> None:
    (threat,) = parse(HEAD + '[[threats]]\nplugin = "pgd"\neps = "8/255"', toys).threats
    assert threat.budget == pytest.approx(8 / 255, abs=1e-16)
    assert threat.label == "pgd[eps=8/255]"
    assert threat.params["eps"] == "8/255"


def test_a_list_for_a_scalar_makes_one_cell_each(toys: Host) -> None:
    grid = '[[threats]]\nplugin = "pgd"\neps = ["2/255", 0.1]\nsteps = [1, 2]'
    assert labels(grid, toys) == [
        "pgd[eps=2/255,steps=1]", "pgd[eps=2/255,steps=2]", "pgd[eps=0.1,steps=1]", "pgd[eps=0.1,steps=2]",
    ]  # fmt: skip


def test_a_list_for_a_list_is_no_grid(toys: Host) -> None:
    assert labels('[[threats]]\nplugin = "ood"\nsets = ["uniform", "constant"]', toys) == ["ood[sets=uniform+constant]"]


def test_a_name_replaces_what_is_not_on_the_grid(toys: Host) -> None:
    assert labels('[[threats]]\nplugin = "pgd"\nname = "mine"\neps = [0.1, 0.2]\nsteps = 3', toys) == [
        "mine[eps=0.1]",
        "mine[eps=0.2]",
    ]
    assert labels('[[threats]]\nplugin = "pgd"\nname = "mine"\neps = 0.1', toys) == ["mine"]


def test_a_threat_may_have_its_own_limit(toys: Host) -> None:
    suite = parse(HEAD + CLEAN + '[[threats]]\nplugin = "pgd"\neps = [0.1, 0.2]\nlimit = 3', toys)
    assert [t.limit for t in suite.threats] == [None, 3, 3]


def test_two_tables_of_one_threat_differ_in_their_parameters(toys: Host) -> None:
    assert labels('[[threats]]\nplugin = "pgd"\neps = 0.1\n[[threats]]\nplugin = "pgd"\neps = 0.2', toys) == [
        "pgd[eps=0.1]",
        "pgd[eps=0.2]",
    ]


def test_a_suite_written_with_a_byte_order_mark_loads(toys: Host, tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_bytes(b"\xef\xbb\xbf" + (HEAD + CLEAN).encode())
    assert load_suite(path, toys).name == "s"


# What is refused


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[suit]\n" + HEAD + CLEAN,
         "suit: unknown table; did you mean 'suite'? (a suite has suite, models, threats, metrics, gate)"),
        (HEAD.replace("name =", "sed = 1\nname =", 1) + CLEAN, "suite sed: unknown key; did you mean 'seed'?"),
        (HEAD.replace('"digits"', '{ name = "digits", splitt = "test" }') + CLEAN,
         "suite.dataset (digits) splitt: unknown key; did you mean 'split'?"),
        (HEAD.replace('"digits"', '{ name = "digits", limt = 3 }') + CLEAN,
         "suite.dataset (digits) limt: unknown key; did you mean 'limit'?"),
        (HEAD + "factry = 'a:b'\n" + CLEAN, "models.a (torch) factry: unknown key; did you mean 'factory'?"),
        (HEAD + "normalize = { mean = [0.5], std = [1.0], sdt = [1] }\n" + CLEAN,
         "models.a (torch) normalize.sdt: unknown key; did you mean 'std'?"),
        (HEAD + CLEAN + '[[threats]]\nplugin = "pgd"\neps = 0.1\nepz = 1',
         "threats[1] (pgd) epz: unknown key; did you mean 'eps'?"),
        (HEAD + CLEAN + "limt = 3", "threats[0] (clean) limt: unknown key; did you mean 'limit'?"),
        (HEAD + CLEAN + "[gate]\nmod = 'detect'", "gate mod: unknown key; did you mean 'mode'?"),
        (HEAD + CLEAN + "[[gate.rules]]\nmetric = 'clean_accuracy'\nselect = { modle = 'a' }",
         "gate rules[0].select.modle: unknown key; did you mean 'model'?"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_refused_at_every_level(text: str, expected: str, toys: Host) -> None:
    assert problems(text, toys) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEAD.replace('"s"', "3") + CLEAN, "suite name: Input should be a valid string, not 3"),
        (HEAD.replace('"digits"', "3") + CLEAN,
         'suite.dataset: expected a name or a table with a name, such as { name = "digits", split = "test" }'),
        (HEAD.replace('"digits"', '{ split = "test" }') + CLEAN,
         'suite.dataset: expected a name or a table with a name, such as { name = "digits", split = "test" }'),
        (HEAD.replace('"digits"', '{ name = "digits", split = "tst" }') + CLEAN,
         "suite.dataset (digits) split: Input should be 'train' or 'test', not 'tst'; did you mean 'test'?"),
        (HEAD.replace('dataset = "digits"', "") + CLEAN, "suite dataset: missing"),
        (HEAD + "num_classes = 'x'\n" + CLEAN,
         "models.a (torch) num_classes: Input should be a valid integer, unable to parse string as an integer,"
         " not 'x'"),
        (HEAD + "normalize = { mean = ['x'], std = [1.0] }\n" + CLEAN,
         "models.a (torch) normalize.mean[0]: Input should be a valid number, unable to parse string as a number,"
         " not 'x'"),
        (HEAD + '[[threats]]\nplugin = "pgd"\neps = "8/0"',
         "threats[0] (pgd) eps: '8/0' is not a number or a fraction such as \"8/255\""),
        (HEAD + '[[threats]]\nplugin = "corruptions"\nseverities = 3',
         "threats[0] (corruptions) severities: expected a list, such as [3], not 3"),
        (HEAD + '[[threats]]\nplugin = "bitflip"\npi = "1/2"',
         "threats[0] (bitflip) pi: expected a list, such as ['1/2'], not '1/2'"),
        (HEAD + '[[threats]]\nplugin = "bitflip"\npi = ["1/x"]',
         "threats[0] (bitflip) pi[0]: '1/x' is not a number or a fraction such as \"8/255\""),
        (HEAD + 'factory_args = 3\n' + CLEAN, "models.a (torch) factory_args: expected a table, not 3"),
        (HEAD + '[[threats]]\nplugin = "pgd"\neps = true',
         "threats[0] (pgd) eps: True is not a number or a fraction such as \"8/255\""),
        (HEAD + '[[threats]]\nplugin = "pgd"\neps = 0.1\nnorm = "l-inf"',
         "threats[0] (pgd) norm: Input should be 'linf', 'l2' or 'l1', not 'l-inf'; did you mean 'linf'?"),
        (HEAD + '[[threats]]\nplugin = "ood"\nsets = ["unifrm"]',
         "threats[0] (ood) sets[0]: Input should be 'uniform', 'constant', 'gaussian', 'rademacher', 'blobs',"
         " 'interpolated', 'rotated', 'flipped', 'contrast', 'blurred' or 'permuted', not 'unifrm'; did you mean"
         " 'uniform'?"),
        (HEAD + '[[threats]]\nplugin = "ood"\nnear = ["unifrm"]',
         "threats[0] (ood) near: 'unifrm' is none of the sets; did you mean 'uniform'?"),
        (HEAD + '[[threats]]\nplugin = "corruptions"\ncorruptions = ["snw", "fgo"]',
         "threats[0] (corruptions) corruptions: no corruption is called 'snw'; did you mean 'snow'?"
         " no corruption is called 'fgo'; did you mean 'fog'?"),
        (HEAD + CLEAN + "limit = 0", "threats[0] (clean) limit: Input should be greater than or equal to 1, not 0"),
        (HEAD + '[[threats]]\nplugin = "pgd"\neps = []', "threats[0] (pgd) eps: an empty list makes no cells"),
        (HEAD + '[[threats]]\nplugin = "pgd"', "threats[0] (pgd) eps: missing"),
        (HEAD + "[[threats]]\neps = 1", "threats[0] plugin: missing; name a threat (see `harness plugins`)"),
        (HEAD.replace('plugin = "torch"\n', "") + CLEAN,
         "models.a plugin: missing; name a model plugin (see `harness plugins`)"),
        (HEAD.replace('"torch"', '"trch"') + CLEAN,
         "models.a plugin: 'trch' is not a model plugin; did you mean 'torch'? (see `harness plugins`)"),
        (HEAD + '[[threats]]\nplugin = "pdg"',
         "threats[0] (pdg) plugin: 'pdg' is not a threat; did you mean 'pgd'? (see `harness plugins`)"),
        (HEAD.replace('"digits"', '"digts"') + CLEAN,
         "suite.dataset name: 'digts' is not a dataset; did you mean 'digits'? (see `harness plugins`)"),
        (HEAD + CLEAN + "[[gate.rules]]\nmetric = 'robust_acuracy'",
         "gate rules[0].metric: 'robust_acuracy' is not a metric; did you mean 'robust_accuracy'?"),
        (HEAD + CLEAN + CLEAN, "threats: 2 threats are called 'clean'; give them names"),
        (HEAD + '[[threats]]\nplugin = "pgd"\neps = [0.1, 0.1]',
         "threats: 2 threats are called 'pgd[eps=0.1]'; give them names"),
        (HEAD + "factory_args = { a = [1, nan] }\n" + CLEAN, "models.a.factory_args.a[1]: nan is not a finite number"),
        (HEAD + CLEAN + "[metrics.auroc]\nlevel = 1", "metrics.auroc: 'auroc' has no options"),
        (HEAD + CLEAN + "[metrics.toy_conut]\nabove = 1",
         "metrics.toy_conut: 'toy_conut' is not a metric; did you mean 'toy_count'?"),
        (HEAD + CLEAN + "[metrics.toy_count]\nabove = -1",
         "metrics.toy_count above: Input should be greater than or equal to 0, not -1"),
        (HEAD + CLEAN + "[metrics.mean_corruption_error]\nreference = 'alxnet'",
         "metrics.mean_corruption_error reference: 'alxnet' is no model of the suite (a) or \"alexnet\";"
         " did you mean 'alexnet'?"),
        (HEAD + CLEAN + "[metrics.likelihood_ratio_auroc]\nbackground = 'noise'",
         "metrics.likelihood_ratio_auroc background: 'noise' is no model of the suite (a)"),
        (HEAD + CLEAN + "[metrics]\ntoy_count = 1", "metrics: expected tables [metrics.NAME]"),
        (HEAD + CLEAN + "[gate]\nmax_drop = inf", "gate.max_drop: inf is not a finite number"),
        (HEAD + CLEAN + "[toy]\n", "toy: unknown table (a suite has suite, models, threats, metrics, gate)"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_path(text: str, expected: str, toys: Host) -> None:
    assert problems(text, toys) == [expected]


def test_a_choice_between_types_is_one_problem(toys: Host) -> None:
    text = HEAD.replace('"digits"', '{ name = "imagefolder", path = "x", resize = "big" }') + CLEAN
    (line,) = problems(text, toys)
    assert line.startswith("suite.dataset (imagefolder) resize: Input should be a valid integer")
    assert "; or expected a list, such as ['big'], not 'big'" in line


def test_data_sets_that_a_threat_names_are_checked_like_the_suites_own(toys: Host) -> None:
    ood = """[[threats]]
        plugin = "ood"
        sets = ["unifrm"]
        near = ["uniform"]
        datasets = [
            { name = "digits", splt = "x", limt = 1, sett = "a" },
            { name = "digts" },
            "digits",
            { split = "test" },
            { name = "digits", split = "train", set = "fine", limit = 3 },
        ]
        """
    example = 'expected a table with a name, such as { name = "digits", split = "test" }, not'
    first, *others = problems(HEAD + ood, toys)
    assert first.startswith("threats[0] (ood) sets[0]: Input should be 'uniform', ")
    assert others == [
        "threats[0] (ood) datasets[0] (digits) splt: unknown key; did you mean 'split'?",
        "threats[0] (ood) datasets[0] (digits) limt: unknown key; did you mean 'limit'?",
        "threats[0] (ood) datasets[0] (digits) sett: unknown key; did you mean 'set'?",
        "threats[0] (ood) datasets[1] name: 'digts' is not a dataset; did you mean 'digits'? (see `harness plugins`)",
        f"threats[0] (ood) datasets[2]: {example} 'digits'",
        f"threats[0] (ood) datasets[3]: {example} {{'split': 'test'}}",
    ]


def test_missing_tables_are_all_named(toys: Host) -> None:
    assert problems("", toys) == [
        "suite: missing; a suite needs a table [suite]",
        "models: a suite needs at least one table [models.NAME]",
        "threats: a suite needs at least one table [[threats]]",
    ]


def test_tables_of_the_wrong_kind_are_all_named(toys: Host) -> None:
    found = problems('suite = 3\ngate = "x"\nmodels = [1]\nthreats = { plugin = "pgd" }', toys)
    assert [line.partition(":")[0] for line in found] == ["suite", "models", "threats", "gate"]


def test_all_problems_come_at_once_also_without_a_usable_suite_table(toys: Host) -> None:
    text = HEAD.replace('name = "s"', "seed = -1").replace('"digits"', '"digts"').replace("factory", "factry")
    found = problems(text + CLEAN.replace("clean", "pdg") + "[gate]\nmod = 1", toys)
    paths = [line.split(": ")[0] for line in found]
    assert {"suite name", "suite seed", "suite.dataset name", "models.a (torch) factry", "gate mod"} <= set(paths)
    assert "threats[0] (pdg) plugin" in paths


def test_a_plugin_without_options_accepts_no_key(toys: Host) -> None:
    text = HEAD.replace('"torch"', '"toy-density"').replace("factory", "factry") + CLEAN
    assert problems(text, toys) == ["models.a (toy-density) factry: unknown key"]


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", " a", "a\nb", "a\x1b[31mb"])
def test_a_name_that_would_break_ids_or_terminals_is_refused(name: str, toys: Host) -> None:
    document = tomllib.loads(HEAD + CLEAN)
    document["models"] = {name: document["models"]["a"]}
    with pytest.raises(SuiteError, match=r"not a name"):
        parse_suite(document, toys)
    threats = tomllib.loads(HEAD + CLEAN)
    threats["threats"][0]["name"] = name
    with pytest.raises(SuiteError, match=r"not a name|at least 1 character"):
        parse_suite(threats, toys)


@pytest.mark.parametrize("name", ["[bold]x[/bold]".replace("/", ""), "модель", "a b", "%s{0}", "-x", "pgd[eps=1]"])
def test_a_strange_but_printable_name_is_kept_as_it_is(name: str, toys: Host) -> None:
    document = tomllib.loads(HEAD + CLEAN)
    document["models"] = {name: document["models"]["a"]}
    assert parse_suite(document, toys).models[0].name == name


# Files


def test_invalid_toml_is_named_with_line_and_column(toys: Host, tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text("[suite]\nname = \n")
    with pytest.raises(SuiteError, match=r"not valid TOML: Invalid value \(at line 2, column 8\)"):
        load_suite(path, toys)


def test_a_key_given_twice_is_invalid_toml(toys: Host, tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(HEAD + HEAD)
    with pytest.raises(SuiteError, match=r"not valid TOML: .*line"):
        load_suite(path, toys)


def test_text_that_is_not_utf8_is_refused(toys: Host, tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_bytes('[suite]\nname = "é"'.encode("latin-1"))
    with pytest.raises(SuiteError, match=r"not UTF-8 text \(byte 16\); save it as UTF-8"):
        load_suite(path, toys)


@pytest.mark.parametrize("path", ["absent.toml", "\0", "x" * 5000, "a/b/c", "qickstart"])
def test_a_file_that_is_not_there_is_one_line(path: str) -> None:
    with pytest.raises(MissingDataError) as caught:
        find_suite(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_near_miss_of_a_shipped_suite_is_named() -> None:
    with pytest.raises(MissingDataError, match="did you mean 'quickstart'"):
        find_suite("qickstart")


def test_shipped_suites_are_found_in_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "papers").mkdir()
    written = tmp_path / "papers" / "table2.toml"
    written.write_text(HEAD)
    monkeypatch.setattr("harness.suite.shipped_suites", lambda: tmp_path)
    for name in ("papers/table2", "suites/papers/table2.toml"):
        assert find_suite(name) == written.resolve()
    with pytest.raises(MissingDataError, match="did you mean 'papers/table2'"):
        find_suite("paper/table2")


def test_a_folder_is_not_a_suite(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="is a folder; give the suite file"):
        find_suite(tmp_path)


# --set


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "s.toml"
    path.write_text(
        HEAD + CLEAN + '[[threats]]\nplugin = "pgd"\neps = 0.1\n[[threats]]\nplugin = "pgd"\nname = "q"\neps = 0.2'
    )
    return path


def test_overrides_reach_every_part_of_a_suite(file: Path, toys: Host) -> None:
    suite = load_suite(file, toys, [
        "suite.seed=7", "suite.dataset.limit=5", "models.a.factory_args.depth=3", "threats.pgd.steps=11",
        "threats.q.norm=l2", "threats[1].eps=[0.1, 8/255]".replace("8/255", '"8/255"'), "gate.mode=noninferior",
    ])  # fmt: skip
    assert suite.settings.seed == 7
    assert (suite.dataset.name, suite.dataset.spec.limit) == ("digits", 5)
    assert suite.models[0].table["factory_args"] == {"depth": 3}
    assert [t.label for t in suite.threats] == ["clean", "pgd[eps=0.1,steps=11]", "pgd[eps=8/255,steps=11]", "q"]
    assert [t.params.get("norm") for t in suite.threats] == [None, "linf", "linf", "l2"]
    assert all(t.params["steps"] == 11 for t in suite.threats[1:])
    assert suite.gate is not None
    assert suite.gate.mode == "noninferior"


def test_a_value_that_is_no_toml_stands_for_itself(file: Path, toys: Host) -> None:
    assert load_suite(file, toys, ["threats.pgd.eps=8/255"]).threats[1].params["eps"] == "8/255"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("suite.seed", "expected key=value"),
        ("=3", "expected key=value"),
        ("models.b.checkpoint=x", "the suite has no 'models.b'"),
        ("threats.nope.eps=1", "the suite has no 'threats.nope'"),
        ("threats[7].eps=1", "the suite has no 'threats[7]'"),
        ("threats[-1].eps=1", "the suite has no 'threats[-1]'"),
        ("threats.pgd=1", "'pgd' is a table of the suite; give one of its keys"),
        ("suite.seed.x=1", "the suite has no 'suite.seed'"),
        ("threats[0]=1", "unknown table"),
        ("suite.sed=1", "suite sed: unknown key; did you mean 'seed'?"),
        ("suite.seed=", "suite seed: Input should be a valid integer"),
        ("..=1", "the suite has no ''"),
    ],
)
def test_a_bad_override_is_explained(text: str, expected: str, file: Path, toys: Host) -> None:
    with pytest.raises(HarnessError) as caught:
        load_suite(file, toys, [text])
    assert expected in str(caught.value)


def test_metrics_over_cells_have_options(toys: Host) -> None:
    assert parse(HEAD + CLEAN, toys).resolved()["metrics"]["toy_count"] == {"above": 0}
    given = parse(HEAD + CLEAN + "[metrics.toy_count]\nabove = 3", toys)
    assert given.resolved()["metrics"]["toy_count"] == {"above": 3}
