"""Scores agree with the dataset's own evaluator."""

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.data.cityscapes import IGNORED, LABEL_IDS, Cityscapes
from tasks.modules.metrics import ConfusionByGroup, building_scores, class_iou, segmentation_scores


def official_evaluation(predictions: list[str], truths: list[str]) -> dict:
    """What cityscapesscripts says of prediction files (label ids) and ground-truth files."""
    evaluator = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    args = evaluator.args
    args.quiet, args.evalInstLevelScore, args.evalPixelAccuracy = True, False, False
    args.JSONOutput = False
    confusion = evaluator.generateMatrix(args)
    for prediction, truth in zip(predictions, truths, strict=True):
        evaluator.evaluatePair(prediction, truth, confusion, {}, {}, args)
    iou = {
        evaluator.id2label[label].name: evaluator.getIouScoreForLabel(label, confusion, args)
        for label in args.evalLabels
    }
    return {
        "miou": evaluator.getScoreAverage(iou, args),
        "class_iou": [iou[evaluator.id2label[label].name] for label in LABEL_IDS],
        "confusion": np.asarray(confusion),
    }


@pytest.mark.parametrize("missing", [(), (26, 33)], ids=["all classes", "two classes absent"])
def test_scores_agree_with_the_official_evaluator(tmp_path, missing):
    rng = np.random.default_rng(1)
    label_codes = [code for code in range(34) if code not in missing]
    ours = ConfusionByGroup(1, 19, IGNORED)
    files = []
    for index in range(3):
        stem = f"town_{index:06d}_000000"
        label_dir = tmp_path / "gtFine/val/town"
        image_dir = tmp_path / "leftImg8bit/val/town"
        label_dir.mkdir(parents=True, exist_ok=True)
        image_dir.mkdir(parents=True, exist_ok=True)
        label = rng.choice(label_codes, (40, 60)).astype(np.uint8)
        truth_file = label_dir / f"{stem}_gtFine_labelIds.png"
        Image.fromarray(label).save(truth_file)
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(image_dir / f"{stem}_leftImg8bit.png")
        # right half of the time, else any class (also where the ground truth is void)
        guess = rng.choice(LABEL_IDS, label.shape)
        right = np.isin(label, LABEL_IDS) & (rng.random(label.shape) < 0.5)
        predicted = np.where(right, label, guess)
        prediction_file = tmp_path / f"{stem}_pred.png"
        Image.fromarray(predicted.astype(np.uint8)).save(prediction_file)
        files.append((str(prediction_file), str(truth_file)))

        train_ids = torch.from_numpy(np.searchsorted(LABEL_IDS, predicted))
        truth = Cityscapes(tmp_path, "val")[index]["label"]
        labels = torch.from_numpy(truth.astype(np.int64))
        ours.update(train_ids[None], labels[None], torch.tensor([0]))

    official = official_evaluation(*map(list, zip(*files, strict=True)))
    confusion = ours.compute()[0]
    scores = segmentation_scores(confusion)
    expected = 100 * np.array(official["class_iou"])
    np.testing.assert_allclose(class_iou(confusion), expected, rtol=1e-9)
    assert scores["miou"] == pytest.approx(100 * official["miou"], rel=1e-9)

    counts = official["confusion"][np.ix_(LABEL_IDS, LABEL_IDS)].astype(float)
    assert scores["pixel_acc"] == pytest.approx(100 * np.trace(counts) / counts.sum())
    present = counts.sum(1) > 0
    recall = np.diag(counts)[present] / counts.sum(1)[present]
    assert scores["mean_acc"] == pytest.approx(100 * recall.mean())


def test_a_class_that_is_only_predicted_counts_as_zero_and_an_absent_one_not_at_all():
    confusion = torch.tensor([[3, 1, 0], [0, 0, 0], [0, 0, 0]])
    assert class_iou(confusion)[:2].tolist() == [75.0, 0.0]
    assert class_iou(confusion)[2].isnan()
    scores = segmentation_scores(confusion)
    assert scores["miou"] == pytest.approx(37.5)
    assert scores["miou_present"] == pytest.approx(75.0)


def test_building_scores_by_city_and_from_summed_counts():
    """Against the definitions of the INRIA benchmark, counted on the pixels themselves."""
    rng = np.random.default_rng(0)
    counter = ConfusionByGroup(3, 2, IGNORED)
    pixels = {}
    for city, share in ((0, 0.3), (1, 0.05)):
        truth = (rng.random((2, 40, 50)) < share).astype(np.int64)
        guess = np.where(rng.random(truth.shape) < 0.8, truth, 1 - truth)
        truth[:, :3] = IGNORED
        pixels[city] = (truth[truth != IGNORED], guess[truth != IGNORED])
        counter.update(torch.from_numpy(guess), torch.from_numpy(truth), torch.full((2,), city))
    pixels["overall"] = tuple(np.concatenate(parts) for parts in zip(*pixels.values(), strict=True))
    scores = building_scores(counter.compute(), ["here", "there", "nowhere"])
    assert set(scores) == {f"{c}_{m}" for c in ("here", "there", "overall") for m in ("iou", "acc")}
    for key, name in ((0, "here"), (1, "there"), ("overall", "overall")):
        truth, guess = pixels[key]
        both, either = ((truth + guess) == 2).sum(), ((truth + guess) > 0).sum()
        assert scores[f"{name}_iou"] == pytest.approx(100 * both / either)
        assert scores[f"{name}_acc"] == pytest.approx(100 * (truth == guess).mean())
