"""How far an answer reaches, by hand: the click lies near a long root's end, and bands hold the pixels of its line."""

import importlib.util

import numpy as np

from rootsam_lib import CHECKOUT

spec = importlib.util.spec_from_file_location("reach", CHECKOUT / "benchmarks" / "reach.py")
reach = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reach)


def test_a_long_root_is_clicked_near_its_end_and_covered_as_far_as_the_answer_goes():
    mask = np.zeros((60, 700), bool)
    mask[20:23, 10:610] = True  # 600 px long
    mask[40:43, 10:200] = True  # too short
    ((line, (x, y), away),) = reach.long_roots(mask)
    assert y == 21 and min(abs(x - 10), abs(x - 609)) in range(8, 14) and 580 < away.max() < 600
    answer = mask.copy()
    answer[:, (slice(0, 410) if x > 300 else slice(210, None))] = False  # it ends about 200 px from the click's end
    shares = [reach.covered(answer, line, away)[band] for band in reach.TOLD]
    assert shares[0][0] == shares[0][1] > 128 and 0 < shares[1][0] < shares[1][1] == 128
    assert shares[2] == (0, 256) and shares[3][0] == 0 and sum(pixels for _, pixels in shares) == len(line)
