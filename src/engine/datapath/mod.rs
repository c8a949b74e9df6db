//! One packet in, one verdict out.
