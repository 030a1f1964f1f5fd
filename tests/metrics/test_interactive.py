from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hrsam_lit.errors import UserError
from hrsam_lit.metrics import ClickMetrics, functional, names

SETTINGS = {"noc_targets": (0.8, 0.9), "nof_targets": (0.9, 0.95), "iou_clicks": (1, 3), "clicks": 6,
            "limit_targets": (0.95,)}  # fmt: skip


def curves(count: int = 11) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    ious = (torch.rand(count, 6, generator=generator, dtype=torch.float64) ** 0.3).cummax(1).values
    return ious, torch.rand(count, generator=generator, dtype=torch.float64)


def expected(ious: Tensor, boundary: Tensor) -> dict[str, float]:
    return {
        "noc80": functional.noc(ious, 0.8).double().mean().item(),
        "noc90": functional.noc(ious, 0.9).double().mean().item(),
        "nof90": functional.nof(ious, 0.9),
        "nof95": functional.nof(ious, 0.95),
        "nof95_at_limit": functional.nof_at_limit(ious, 0.95),
        "iou@1": ious[:, 0].mean().item(),
        "iou@3": ious[:, 2].mean().item(),
        "boundary_iou": boundary.mean().item(),
    }


def values(metric: ClickMetrics) -> dict[str, float]:
    return {name: value.item() for name, value in metric.compute().items()}


def test_names_are_spelled_once() -> None:
    assert set(ClickMetrics().compute()) == {"noc85", "noc90", "noc95", "nof95", "iou@1", "iou@5", "iou@20"}
    assert [names.percent(t / 1000) for t in range(5, 1000, 5)] == [f"{t / 10:g}" for t in range(5, 1000, 5)]
    assert names.validation(names.noc(0.9)) == "val/noc90"
    assert names.train_loss("nfl") == "train/loss/nfl"
    assert names.higher_is_better(names.validation(names.iou_at(5)))
    assert names.higher_is_better(names.BOUNDARY_IOU)
    assert not names.higher_is_better("val/nof95")
    assert not names.higher_is_better("train/loss/nfl")


def test_batches_add_up_to_the_whole() -> None:
    ious, boundary = curves()
    metric = ClickMetrics(**SETTINGS)
    for a, b in ((0, 1), (1, 1), (1, 8), (8, 11)):
        metric.update(ious[a:b], boundary[a:b])
    assert values(metric) == pytest.approx(expected(ious, boundary), rel=1e-12)
    assert metric(ious[:4], boundary[:4])["noc80"] == functional.noc(ious[:4], 0.8).double().mean()
    metric.reset()
    metric.update(ious[:2], boundary[:2])
    assert values(metric) == pytest.approx(expected(ious[:2], boundary[:2]), rel=1e-12)


def test_two_states_merge_into_the_whole() -> None:
    ious, boundary = curves()
    parts = [ClickMetrics(**SETTINGS) for _ in range(3)]
    parts[0].update(ious[:4], boundary[:4])
    parts[1].update(ious[4:], boundary[4:])
    parts[0].merge_state(parts[1])
    parts[0].merge_state(parts[2])  # has seen nothing
    assert values(parts[0]) == pytest.approx(expected(ious, boundary), rel=1e-12)


def test_no_object_is_no_number() -> None:
    metric = ClickMetrics(**SETTINGS)
    assert np.isnan(values(metric)["noc80"])
    assert np.isnan(values(metric)["iou@3"])
    assert values(metric)["nof90"] == 0
    metric.update(torch.zeros(0, 6))
    assert np.isnan(values(metric)["noc80"])


def test_an_object_that_cannot_be_scored_is_a_failure_and_no_iou() -> None:
    ious, boundary = curves(3)
    metric = ClickMetrics(**SETTINGS)
    metric.update(ious, boundary)
    metric.update(torch.full((1, 6), torch.nan), torch.tensor([torch.nan]))
    found, without = values(metric), expected(ious, boundary)
    assert found["iou@3"] == pytest.approx(without["iou@3"])
    assert found["boundary_iou"] == pytest.approx(without["boundary_iou"])
    assert found["nof90"] == without["nof90"] + 1
    assert found["noc90"] == pytest.approx((3 * without["noc90"] + 6) / 4)


def test_sums_keep_their_dtype_when_a_module_is_cast() -> None:
    ious, boundary = curves()
    metric = ClickMetrics(**SETTINGS)
    metric.update(ious, boundary)
    module = torch.nn.ModuleDict({"metric": metric})
    module.to(torch.bfloat16)
    module.half()
    metric.set_dtype(torch.float16)
    assert values(copy.deepcopy(metric)) == pytest.approx(expected(ious, boundary), rel=1e-12)
    metric.update(ious, boundary)
    assert values(metric)["noc80"] == pytest.approx(expected(ious, boundary)["noc80"], rel=1e-12)
    metric.reset()
    assert metric.iou_sum.dtype == torch.float64
    assert not metric.state_dict()


def test_user_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"noc_targets holds 90.*0\.9"):
        ClickMetrics(noc_targets=(90,))
    with pytest.raises(UserError, match="iou_clicks holds 20"):
        ClickMetrics(clicks=10)
    with pytest.raises(UserError, match="clicks=20"):
        ClickMetrics().update(torch.zeros(2, 10))


@pytest.mark.dist
def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in range(2)]
    ranks = [subprocess.Popen(command, env=environment) for command in commands]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    whole = expected(*curves())
    for rank in range(2):
        uneven, one_idle = json.loads((tmp_path / f"{rank}.json").read_text())
        assert uneven == pytest.approx(whole, rel=1e-12)
        assert one_idle == pytest.approx(whole, rel=1e-12)


def one_rank(rank: int, folder: Path) -> None:
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    ious, boundary = curves()
    results = []
    for cut in (4, 0):  # the second time rank 0 never updates
        part = slice(0, cut) if rank == 0 else slice(cut, None)
        metric = ClickMetrics(**SETTINGS)
        if len(ious[part]):
            metric.update(ious[part], boundary[part])
        results.append(values(metric))
    (folder / f"{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    one_rank(int(sys.argv[1]), Path(sys.argv[2]))
