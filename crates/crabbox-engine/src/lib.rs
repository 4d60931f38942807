//! Use cases: acquire, run, stop, cleanup, doctor, supervise, image build. Emits events, prints nothing.
