"""Two processes: gradients under DistributedDataParallel, and the three ways to start them."""

import ddp_worker
import pytest
import tiny_run
import torch
from torch import multiprocessing

from mimicdet.commands.train import main

SPARSE_OFF = ["MODEL.MIMICDET.STUDENT.SPARSE", "False"]
MIMIC = "MODEL.MIMICDET.MIMIC."
# Rank 1, without an object, has no box to mimic.
LEVERS = [
    *(f"{MIMIC}TERMS.SCORES", "1.0", f"{MIMIC}TERMS.BOXES", "1.0", f"{MIMIC}PROJECTOR", "True"),
    *(f"{MIMIC}MAX_BACKGROUND", "0.5", f"{MIMIC}TEACHER_EMA", "0.9"),
    *(f"{MIMIC}SAMPLES", "sampled_and_mined", f"{MIMIC}FEATURE_LOSS", "standardized"),
    *(f"{MIMIC}GRADIENT_RATIO", "0.5"),
]


@pytest.mark.parametrize("opts", [[], SPARSE_OFF, LEVERS], ids=["sparse", "dense", "levers"])
def test_ddp_gradients_are_the_mean_of_the_processes_own(data, tmp_path, opts):
    arguments = (str(data.config), opts, tiny_run.free_port(), str(tmp_path))
    multiprocessing.spawn(ddp_worker.work, arguments, nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))

    assert first["keys"] == second["keys"] == first["ddp_keys"] == second["ddp_keys"]
    assert {"loss_mimic_cls", "loss_teacher_loc", "loss_student_loc"} <= set(first["keys"])
    assert first["alone"].keys() == first["shared"].keys()
    for name, own in first["alone"].items():
        other = second["alone"][name]
        mean = (own + other) / 2
        torch.testing.assert_close(first["shared"][name], mean, rtol=1e-4, atol=1e-6, msg=name)
        torch.testing.assert_close(second["shared"][name], first["shared"][name], rtol=0, atol=0)
    # The two batches ask for different gradients: the mean is neither process's own.
    name = "student.student_head.class_logits.weight"
    assert not torch.allclose(first["alone"][name], second["alone"][name], atol=1e-4)


def check_run(output, log):
    """Two iterations of two processes, written once, by the first of them."""
    assert "Traceback" not in log and "error:" not in log
    assert log.count("Starting training from iteration 0") == 1
    assert "World size: 2" in log
    assert [path.name for path in output.rglob("config.yaml")] == ["config.yaml"]
    assert (output / "log.txt.rank1").is_file()
    assert "Starting training from iteration 0" in (output / "log.txt").read_text()
    last = tiny_run.metrics(output)[-2 if "bbox/AP" in tiny_run.metrics(output)[-1] else -1]
    assert last["iteration"] == 1 and last["total_loss"] < 1e3
    checkpoint = tiny_run.state(output / "model_final.pth")
    assert checkpoint["iteration"] == 1


def arguments(data, output):
    # One image a process: the batch is the sum over all of them.
    opts = ["OUTPUT_DIR", output, "SOLVER.IMS_PER_BATCH", 2, *tiny_run.SHORT]
    return ["--config-file", data.config, *opts]


def test_num_gpus_2_on_a_cpu(data, tmp_path, capfd):
    port = tiny_run.free_port()
    options = ["--num-gpus", "2", "--dist-url", f"tcp://127.0.0.1:{port}"]
    code = main([*options, *map(str, arguments(data, tmp_path / "output"))])
    captured = capfd.readouterr()
    assert code == 0
    check_run(tmp_path / "output", captured.out + captured.err)


def test_two_launches_stand_in_for_two_machines(data, tmp_path):
    output = tmp_path / "output"
    url = f"tcp://127.0.0.1:{tiny_run.free_port()}"
    options = ["--num-machines", 2, "--num-gpus", 1, "--dist-url", url]
    machines = [
        tiny_run.start(*options, "--machine-rank", rank, *arguments(data, output))
        for rank in (0, 1)
    ]
    ends = [tiny_run.finish(machine) for machine in machines]
    assert [code for code, _ in ends] == [0, 0], "\n".join(log[-3000:] for _, log in ends)
    check_run(output, ends[0][1])
    assert "Traceback" not in ends[1][1]


def test_torchrun(data, tmp_path):
    output = tmp_path / "output"
    port = str(tiny_run.free_port())
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port)
    process = tiny_run.start(*arguments(data, output), launcher=launcher)
    code, log = tiny_run.finish(process)
    assert code == 0, log[-3000:]
    check_run(output, log)


def test_an_error_in_two_processes_is_one_clear_line(data, tmp_path, capfd):
    url = f"tcp://127.0.0.1:{tiny_run.free_port()}"
    opts = ["OUTPUT_DIR", str(tmp_path / "output"), "SOLVER.IMS_PER_BATCH", "3"]
    options = ["--num-gpus", "2", "--dist-url", url, "--config-file", str(data.config)]
    assert main([*options, *opts]) == 2
    error = capfd.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "batch size (3)" in lines[0]
    assert "Traceback" not in error
