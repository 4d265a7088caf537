"""Networks: they take tensors, and know no batch, loss or device."""
