"""One network per item modality: tensors in, tensors out."""
