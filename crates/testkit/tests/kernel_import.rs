//! A stock kernel that is made for all machines, Debian's `linux-image-amd64`: unlike in the kernel for clouds, the file
//! system of a VM's disks is a module, which needs a checksum that it does not name as a dependency.

use banger_testkit::{Sandbox, Seed, apt, skip_unless};

#[test]
fn debian_s_stock_kernel_boots_and_goes_on_from_a_template() {
    skip_unless!(apt::is_there(), "there is no apt to get Debian's kernel with");
    let sandbox = Sandbox::with(&Seed::stock_kernel()).warm();
    let shape = ["--kernel", "stock", "--memory", "256M"];
    // Given a VM that booted it
    let first = sandbox.vm("first", "bare", &shape);
    assert_eq!(first.boot_kind(), "cold");
    let release = first.says("uname -r");
    assert!(release.ends_with("-amd64") && !release.contains("cloud"), "{release}");
    let modules = first.says("cut -d' ' -f1 /proc/modules");
    for module in ["ext4", "squashfs", "overlay", "virtio_blk", "virtio_net"] {
        assert!(modules.lines().any(|m| m == module), "{module} is no module of {release}:\n{modules}");
    }
    first.delete();
    // When its template is there
    sandbox.template_made();
    // Then the next VM goes on from it, with this kernel and a disk that it can write
    let second = sandbox.vm("second", "bare", &shape);
    assert_eq!(second.boot_kind(), "warm");
    assert_eq!(second.says("uname -r; echo x >/root/x; sync; cat /root/x"), format!("{release}\nx"));
    second.is_sound();
    second.delete();
    sandbox.no_vm_is_left();
}
