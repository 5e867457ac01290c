"""What is done with a row between the products: norm, quantisation, rope, scatter, the operand of a product."""
