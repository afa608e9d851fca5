"""Plans from flags and from files, and the runs that they ask for."""

import pytest
import torch

from mimicdet.commands.compare_runs.plan import plan_of_flags, plan_runs, read_plan
from mimicdet.engine import MimicTrainer
from tests.engine.tiny_run import SHORT

SWEEP = ["SOLVER.BASE_LR", "0.1", "0.2"]


def test_seed_by_seed(configs, tmp_path):
    runs = plan_runs(plan_of_flags(configs, [1, 2], SHORT), tmp_path)
    titles = ["alone seed 1", "taught seed 1", "alone seed 2", "taught seed 2"]
    assert [run.title for run in runs] == titles
    assert [run.folder for run in runs[:2]] == [
        tmp_path / x / "seed_1" for x in ("alone", "taught")
    ]
    assert [run.cfg.OUTPUT_DIR for run in runs] == [str(run.folder) for run in runs]
    assert [run.cfg.SEED for run in runs] == [1, 1, 2, 2]
    assert runs[0].cfg.SOLVER.MAX_ITER == 2
    assert all(run.cfg.MODEL.INIT_BY_NAME for run in runs)
    off = plan_of_flags(configs, [1], ["MODEL.INIT_BY_NAME", "False"])
    assert not any(run.cfg.MODEL.INIT_BY_NAME for run in plan_runs(off, tmp_path))


def test_a_sweep_has_a_row_for_each_value(configs, tmp_path):
    runs = plan_runs(plan_of_flags(configs, [1], ["SOLVER.BASE_LR", "0.5"], SWEEP), tmp_path)
    assert [(run.row.name, run.cfg.SOLVER.BASE_LR) for run in runs] == [
        (f"{config}_base_lr_{value}", value)
        for config in ("alone", "taught")
        for value in (0.1, 0.2)
    ]


@pytest.mark.parametrize(
    ("repeats", "seeds", "opts", "more", "message"),
    [
        (2, (1,), (), {}, "config alone is named twice"),
        (1, (1, 1), (), {}, "seed 1 is named twice"),
        (1, (1,), ("SEED", "3"), {}, "SEED: set by the comparison"),
        (1, (1,), ("SOLVER.NONE", "3"), {}, "row alone: .*SOLVER.NONE"),
        (1, (1,), ("TEST.PATIENCE", "3"), {}, "row alone: TEST.PATIENCE must be 0"),
        (1, (1,), (), {"sweep": SWEEP[:1]}, "--sweep SOLVER.BASE_LR: no values"),
        (1, (1,), (), {"sweep": [*SWEEP, "0.2"]}, "alone_base_lr_0.2.*twice"),
        (1, (1,), (), {"sweep": ["SEED", "3"]}, "SEED: set by the comparison"),
        (1, (1,), (), {"baseline": "none"}, "baseline of alone must be one of alone, got 'none'"),
    ],
)
def test_plans_that_cannot_work(configs, tmp_path, repeats, seeds, opts, more, message):
    with pytest.raises(ValueError, match=message):
        plan_runs(plan_of_flags(configs[:1] * repeats, seeds, opts, **more), tmp_path)


def write_plan(tmp_path, configs, more=""):
    path = tmp_path / "plan.yaml"
    path.write_text(f"""
rows:
- {{name: alone, config: {configs[0]}, opts: {{MODEL.MIMICDET.MIMIC.ENABLED: false}}}}
- {{name: taught, config: {configs[1]}}}
sets:
- {{name: small, opts: {{INPUT.MIN_SIZE_TRAIN: [64], SOLVER.BASE_LR: 0.2}}}}
- {{name: large}}
seeds: [3, 1]
pairs:
- {{row: taught, baseline: alone}}
opts: {{SOLVER.BASE_LR: 0.1}}
{more}""")
    return path


def test_a_plan_file(configs, tmp_path):
    path = write_plan(tmp_path, configs)
    runs = plan_runs(read_plan(path), tmp_path / "out")
    assert [run.title for run in runs[:4]] == [
        "small alone seed 3",
        "small taught seed 3",
        "large alone seed 3",
        "large taught seed 3",
    ]
    assert len(runs) == 8 and [run.cfg.SEED for run in runs[3:5]] == [3, 1]
    assert runs[0].folder == tmp_path / "out" / "small" / "alone" / "seed_3"
    assert [run.cfg.SOLVER.BASE_LR for run in runs[1:3]] == [0.2, 0.1]
    assert [run.cfg.MODEL.MIMICDET.MIMIC.ENABLED for run in runs[:2]] == [False, True]
    assert runs[0].cfg.INPUT.MIN_SIZE_TRAIN == (64,)
    assert all(run.cfg.MODEL.INIT_BY_NAME for run in runs)
    assert read_plan(path, [7]).seeds == (7,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds: [3, 1]", ""), "the plan: seeds is missing"),
        (("seeds: [3, 1]", "seeds: [3, -1]"), r"seeds\[1\] must be a whole number >= 0, got -1"),
        (("seeds: [3, 1]", "seeds: 3"), "seeds must be a list with entries, got 3"),
        (("sets:", "set:"), "an entry of the plan must be one of rows, .*got 'set'"),
        (("name: large", "name: a/b"), r"sets\[1\].name: .* not 'a/b'"),
        (("name: large", "name: 5"), r"sets\[1\].name must be a text, got 5"),
        (("{name: large}", "large"), r"sets\[1\] must be a mapping of name, opts, got 'large'"),
        (("name: large", "name: small"), "set small is named twice"),
        (("opts: {SOLVER.BASE_LR: 0.1}", "opts: [1]"), "opts must be a mapping of config keys"),
        (("opts: {SOLVER.BASE_LR: 0.1}", "opts: {SEED: 1}"), "SEED: set by the comparison"),
        (("baseline: alone", "baseline: aloen"), "baseline of taught must be one of .* 'aloen'"),
        (("baseline: alone", "baseline: taught"), "taught is its own baseline"),
        (("rows:", "rows: ]"), "no plain YAML"),
        (("seeds: [3, 1]", "seeds: !!python/object/apply:os.getpid []"), "no plain YAML"),
    ],
)
def test_plan_files_that_cannot_work(configs, tmp_path, change, message):
    path = write_plan(tmp_path, configs)
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(ValueError, match=f"^{path}.*{message}"):
        read_plan(path)


def test_the_arms_of_a_pair_start_alike_and_see_the_same_images(configs, tmp_path):
    path = write_plan(tmp_path, configs)
    text = path.read_text().replace("MIMIC.ENABLED: false}", "STUDENT.ALIGNMENT: conv}")
    path.write_text(text.replace("opts: {SOLVER", "opts: {SOLVER.IMS_PER_BATCH: 1, SOLVER"))
    alone, taught = plan_runs(read_plan(path, [5]), tmp_path)[:2]
    weights = [
        dict(MimicTrainer.build_model(run.cfg).named_parameters()) for run in (alone, taught)
    ]
    common = [k for k in weights[0] if k in weights[1] and "alignment" not in k]
    assert sum(k.startswith("student_head.") for k in common) >= 4
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in common)
    images = []
    for run in (alone, taught):
        batches = iter(MimicTrainer.build_train_loader(run.cfg))
        images.append([next(batches)[0]["image_id"] for _ in range(9)])
    assert images[0] == images[1]
