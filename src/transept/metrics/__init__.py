"""Scores of predictions: accuracy, average precision, IoU, k-nearest neighbours, losses."""
