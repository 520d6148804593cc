"""The demo: real files, real processes, one of them killed, and a proof that nothing was lost or done twice."""
