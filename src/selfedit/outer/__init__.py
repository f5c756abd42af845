"""The outer loop: rounds of ReST-EM, what they are about, and what the policy is trained on."""
