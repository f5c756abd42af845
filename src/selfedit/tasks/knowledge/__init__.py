"""Knowledge incorporation: passages in, closed-book exams out (paper section 4.1)."""
