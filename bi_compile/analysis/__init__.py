"""What is known about ATen ops: which results can depend on an order of evaluation."""
