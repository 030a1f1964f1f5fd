"""Unexplained variance."""

import torch

from hrsam_lit.metrics.variance import UnexplainedVariance


def test_mean_scores_one_and_a_copy_scores_zero():
    target = torch.randn(3, 8, 5, 6) * torch.rand(8)[:, None, None] + torch.randn(8)[:, None, None]
    valid = torch.rand(3, 1, 5, 6) > 0.3
    cells = target.permute(0, 2, 3, 1)[valid[:, 0]]
    mean = cells.mean(0)[None, :, None, None].expand_as(target)
    for student, expected in ((mean, 1.0), (target, 0.0), ((mean + target) / 2, 0.25)):
        metric = UnexplainedVariance(8)
        for index in range(3):
            metric.update(student[index : index + 1], target[index : index + 1], valid[index : index + 1])
        assert abs(metric.compute() - expected) < 1e-5
