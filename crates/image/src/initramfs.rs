//! The initramfs: a newc cpio archive (kernel: Documentation/driver-api/early-userspace/buffer-format.rst) of the
//! agent and the modules it loads, in the layout of `banger_protocol::boot`. Must never depend on time or host:
//! equal input gives equal bytes.
