"""Zero-shot evaluation on suites of public test sets."""
