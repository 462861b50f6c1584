"""DANet: train, evaluate and take apart the Dual Attention Network for scene segmentation."""
