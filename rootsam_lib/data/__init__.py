"""Scans and masks: types, files, data sets, splits, drawn scans, augmentation."""
