"""src/predict.py: files in, labels and pictures out."""
