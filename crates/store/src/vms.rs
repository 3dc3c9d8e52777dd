//! VM records.

use banger_model::{Bytes, KernelName, MachineShape, Mib, Sha256, Vm, VmId};
use rusqlite::{Connection, Row, TransactionBehavior, named_params};

use crate::row::{optional_json, optional_unsigned, optional_word, parsed, to_json, unsigned, word};
use crate::{Store, StoreError};

const INSERT: &str = "INSERT INTO vms VALUES (:id, :name, :state, :driver, :accel, :image, :image_digest, :kernel, \
     :vcpu, :memory_mib, :disk_bytes, :network, :host_access, :ephemeral, :workspace, :created_at, :started_at, :boot, \
     :last_error, :work_disk_bytes, :system_generation, :unfinished, :parent, :work_generation)";

const UPDATE: &str = "UPDATE vms SET name = :name, state = :state, driver = :driver, accel = :accel, image = :image, \
     image_digest = :image_digest, kernel = :kernel, vcpu = :vcpu, memory_mib = :memory_mib, disk_bytes = :disk_bytes, \
     network = :network, host_access = :host_access, ephemeral = :ephemeral, workspace = :workspace, \
     created_at = :created_at, started_at = :started_at, boot = :boot, last_error = :last_error, \
     work_disk_bytes = :work_disk_bytes, system_generation = :system_generation, unfinished = :unfinished, \
     parent = :parent, work_generation = :work_generation WHERE id = :id";

impl Store {
    /// All VMs, oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub fn vms(&self) -> Result<Vec<Vm>, StoreError> {
        let connection = self.connection();
        let mut statement = connection.prepare_cached("SELECT * FROM vms ORDER BY created_at, id")?;
        let mut rows = statement.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            all.push(vm(row)?);
        }
        Ok(all)
    }

    /// The VM with this id, if there is one.
    ///
    /// # Errors
    /// When the database fails.
    pub fn vm(&self, id: &VmId) -> Result<Option<Vm>, StoreError> {
        select(&self.connection(), id)
    }

    /// Adds a VM. The unique name makes this the one place where a name is won or lost.
    ///
    /// # Errors
    /// [`StoreError::NameTaken`].
    pub fn insert_vm(&self, vm: &Vm) -> Result<(), StoreError> {
        write(&self.connection(), INSERT, vm)
    }

    /// Changes a VM's record, read and written with nobody in between. `None` when it is gone.
    ///
    /// # Errors
    /// When the database fails; [`StoreError::NameTaken`] for a new name.
    pub fn modify_vm(&self, id: &VmId, change: impl FnOnce(&mut Vm)) -> Result<Option<Vm>, StoreError> {
        let mut connection = self.connection();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let Some(mut vm) = select(&transaction, id)? else { return Ok(None) };
        change(&mut vm);
        write(&transaction, UPDATE, &vm)?;
        transaction.commit()?;
        Ok(Some(vm))
    }

    /// Forgets a VM.
    ///
    /// # Errors
    /// When the database fails.
    pub fn delete_vm(&self, id: &VmId) -> Result<(), StoreError> {
        self.connection().execute("DELETE FROM vms WHERE id = ?1", [id.as_str()])?;
        Ok(())
    }

    /// Names of the VMs that use a kernel, but for spares: those are in nobody's way.
    ///
    /// # Errors
    /// When the database fails.
    pub fn vms_with_kernel(&self, kernel: &KernelName) -> Result<Vec<String>, StoreError> {
        self.names(
            "SELECT name FROM vms WHERE kernel = ?1 AND unfinished IS NOT 'spare' ORDER BY name",
            kernel.as_str(),
        )
    }

    /// Names of the VMs that boot from an image, but for spares.
    ///
    /// # Errors
    /// When the database fails.
    pub fn vms_with_image(&self, digest: &Sha256) -> Result<Vec<String>, StoreError> {
        self.names(
            "SELECT name FROM vms WHERE image_digest = ?1 AND unfinished IS NOT 'spare' ORDER BY name",
            digest.as_str(),
        )
    }

    fn names(&self, sql: &str, key: &str) -> Result<Vec<String>, StoreError> {
        let connection = self.connection();
        let mut statement = connection.prepare_cached(sql)?;
        let names = statement.query_map([key], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(names)
    }
}

fn select(connection: &Connection, id: &VmId) -> Result<Option<Vm>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT * FROM vms WHERE id = ?1")?;
    let mut rows = statement.query([id.as_str()])?;
    rows.next()?.map(vm).transpose()
}

fn write(connection: &Connection, sql: &str, vm: &Vm) -> Result<(), StoreError> {
    let written = connection.prepare_cached(sql)?.execute(named_params! {
        ":id": vm.id.as_str(),
        ":name": vm.name.as_str(),
        ":state": vm.state.as_str(),
        ":driver": vm.driver.as_str(),
        ":accel": vm.accel.map(banger_model::Accel::as_str),
        ":image": vm.image.as_str(),
        ":image_digest": vm.image_digest.as_str(),
        ":kernel": vm.kernel.as_str(),
        ":vcpu": vm.shape.vcpu,
        ":memory_mib": vm.shape.memory.0,
        ":disk_bytes": i64::try_from(vm.shape.disk.0).unwrap_or(i64::MAX),
        ":network": vm.network.as_str(),
        ":host_access": vm.host_access,
        ":ephemeral": vm.ephemeral,
        ":workspace": to_json(vm.workspace.as_ref())?,
        ":created_at": vm.created_at.to_string(),
        ":started_at": vm.started_at.map(|t| t.to_string()),
        ":boot": to_json(vm.boot.as_ref())?,
        ":last_error": to_json(vm.last_error.as_ref())?,
        ":work_disk_bytes": vm.work_disk.map(|size| i64::try_from(size.0).unwrap_or(i64::MAX)),
        ":system_generation": vm.system_generation,
        ":unfinished": vm.unfinished.map(banger_model::Unfinished::as_str),
        ":parent": to_json(vm.parent.as_ref())?,
        ":work_generation": vm.work_generation,
    });
    match written {
        Ok(_) => Ok(()),
        Err(e) if e.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => {
            Err(StoreError::NameTaken(vm.name.to_string()))
        }
        Err(e) => Err(e.into()),
    }
}

fn vm(row: &Row<'_>) -> Result<Vm, StoreError> {
    Ok(Vm {
        id: parsed(row, "id")?,
        name: parsed(row, "name")?,
        state: word(row, "state")?,
        driver: word(row, "driver")?,
        accel: optional_word(row, "accel")?,
        image: parsed(row, "image")?,
        image_digest: parsed(row, "image_digest")?,
        kernel: parsed(row, "kernel")?,
        shape: MachineShape {
            vcpu: unsigned(row, "vcpu")?,
            memory: Mib(unsigned(row, "memory_mib")?),
            disk: Bytes(unsigned(row, "disk_bytes")?),
        },
        work_disk: optional_unsigned(row, "work_disk_bytes")?.map(Bytes),
        system_generation: unsigned(row, "system_generation")?,
        network: word(row, "network")?,
        host_access: row.get("host_access")?,
        ephemeral: row.get("ephemeral")?,
        workspace: optional_json(row, "workspace")?,
        created_at: word(row, "created_at")?,
        started_at: optional_word(row, "started_at")?,
        boot: optional_json(row, "boot")?,
        last_error: optional_json(row, "last_error")?,
        unfinished: optional_word(row, "unfinished")?,
        parent: optional_json(row, "parent")?,
        work_generation: unsigned(row, "work_generation")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_model::{
        Accel, Boot, BootKind, DriverKind, ErrorCode, LastError, NetworkMode, Unfinished, VmState, Workspace,
        WorkspaceMode,
    };

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("banger.db")).unwrap();
        (dir, store)
    }

    fn sample(n: u8) -> Vm {
        Vm {
            id: VmId::from_random([n; 6]),
            name: format!("vm-{n}").parse().unwrap(),
            state: VmState::Running,
            driver: DriverKind::Qemu,
            accel: Some(Accel::Tcg),
            image: "debian".parse().unwrap(),
            image_digest: Sha256::from_bytes([n; 32]),
            kernel: "debian-cloud".parse().unwrap(),
            shape: MachineShape { vcpu: 2, memory: Mib(512), disk: Bytes(4 << 30) },
            work_disk: Some(Bytes(8 << 30)),
            system_generation: 3,
            work_generation: 2,
            parent: Some(banger_model::Parent {
                id: VmId::from_random([9; 6]),
                name: "mother".parse().unwrap(),
            }),
            network: NetworkMode::User,
            host_access: true,
            ephemeral: false,
            unfinished: Some(Unfinished::Creating),
            workspace: Some(Workspace {
                guest_path: "/root/repo".parse().unwrap(),
                source_path: vec![b'/', 0xff].into(),
                base_commit: "0".repeat(40),
                branch: None,
                mode: WorkspaceMode::ShallowOverlay,
                prepared_at: "2026-11-21T03:33:00.123Z".parse().unwrap(),
                readonly: true,
                unfinished: Some(banger_model::Copying::Update),
            }),
            created_at: "2026-11-21T03:33:00Z".parse().unwrap(),
            started_at: Some("2026-11-21T03:33:01Z".parse().unwrap()),
            boot: Some(Boot { kind: BootKind::Cold, ready_ms: 1700 }),
            last_error: Some(LastError { code: ErrorCode::BootFailed, message: "it did not".into() }),
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let (_dir, store) = store();
        let full = sample(1);
        let bare = Vm {
            accel: None,
            work_disk: None,
            workspace: None,
            started_at: None,
            boot: None,
            last_error: None,
            unfinished: None,
            parent: None,
            state: VmState::Created,
            ..sample(2)
        };
        store.insert_vm(&full).unwrap();
        store.insert_vm(&bare).unwrap();
        assert_eq!(store.vms().unwrap(), [full.clone(), bare.clone()]);
        let changed = store.modify_vm(&full.id, |vm| vm.state = VmState::Stopped).unwrap().unwrap();
        assert_eq!(changed, Vm { state: VmState::Stopped, ..full });
        assert_eq!(store.vm(&changed.id).unwrap(), Some(changed.clone()));
        store.delete_vm(&changed.id).unwrap();
        assert_eq!(store.vm(&changed.id).unwrap(), None);
        assert_eq!(store.modify_vm(&changed.id, |_| ()).unwrap(), None);
        assert_eq!(store.vms_with_kernel(&bare.kernel).unwrap(), ["vm-2"]);
        assert_eq!(store.vms_with_image(&bare.image_digest).unwrap(), ["vm-2"]);
    }

    #[test]
    fn of_many_who_want_one_name_exactly_one_gets_it() {
        let (_dir, store) = store();
        let wins = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..20u8)
                .map(|n| {
                    let store = &store;
                    scope.spawn(move || store.insert_vm(&Vm { name: "one".parse().unwrap(), ..sample(n) }))
                })
                .collect();
            tries.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(wins.iter().filter(|w| w.is_ok()).count(), 1);
        assert!(wins.iter().flat_map(|w| w.as_ref().err()).all(|e| matches!(e, StoreError::NameTaken(_))));
    }
}
