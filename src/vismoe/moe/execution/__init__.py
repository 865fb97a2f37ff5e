"""How a plan is carried out: an exchange brings tokens to experts and back, a product multiplies."""
