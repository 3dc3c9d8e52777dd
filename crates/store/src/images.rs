//! Image names and what they point to.

use banger_model::{Bytes, Image, ImageName, Sha256};
use rusqlite::{Row, params};

use crate::row::{parsed, unsigned, word};
use crate::{Store, StoreError};

impl Store {
    /// All images by name.
    ///
    /// # Errors
    /// When the database fails.
    pub fn images(&self) -> Result<Vec<Image>, StoreError> {
        let connection = self.connection();
        let mut statement = connection.prepare_cached("SELECT * FROM images ORDER BY name")?;
        let mut rows = statement.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            all.push(image(row)?);
        }
        Ok(all)
    }

    /// Points a name at an image; a name that was taken now means this one.
    ///
    /// # Errors
    /// When the database fails.
    pub fn put_image(&self, image: &Image) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached("INSERT OR REPLACE INTO images VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
            .execute(params![
                image.name.as_str(),
                image.digest.as_str(),
                image.fs.as_str(),
                i64::try_from(image.size_bytes.0).unwrap_or(i64::MAX),
                image.source.as_str(),
                image.description,
                image.created_at.to_string(),
            ])?;
        Ok(())
    }

    /// Forgets a name. Whether its file may go is for [`Store::referenced_digests`] to say.
    ///
    /// # Errors
    /// When the database fails.
    pub fn delete_image(&self, name: &ImageName) -> Result<(), StoreError> {
        self.connection().execute("DELETE FROM images WHERE name = ?1", [name.as_str()])?;
        Ok(())
    }

    /// Every digest that a name or a VM refers to: these files must stay.
    ///
    /// # Errors
    /// When the database fails.
    pub fn referenced_digests(&self) -> Result<Vec<Sha256>, StoreError> {
        let connection = self.connection();
        let mut statement = connection
            .prepare_cached("SELECT digest FROM images UNION SELECT image_digest AS digest FROM vms")?;
        let mut rows = statement.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            all.push(parsed(row, "digest")?);
        }
        Ok(all)
    }
}

fn image(row: &Row<'_>) -> Result<Image, StoreError> {
    Ok(Image {
        name: parsed(row, "name")?,
        digest: parsed(row, "digest")?,
        fs: word(row, "fs")?,
        size_bytes: Bytes(unsigned(row, "size_bytes")?),
        source: word(row, "source")?,
        description: row.get("description")?,
        created_at: word(row, "created_at")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_model::{ImageSource, RootFsType};

    #[test]
    fn a_name_moves_on_and_the_last_reference_frees_the_digest() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("banger.db")).unwrap();
        let old = Image {
            name: "debian".parse().unwrap(),
            digest: Sha256::from_bytes([1; 32]),
            fs: RootFsType::Squashfs,
            size_bytes: Bytes(7),
            source: ImageSource::Build,
            description: "bookworm".into(),
            created_at: "2026-11-21T00:00:00Z".parse().unwrap(),
        };
        store.put_image(&old).unwrap();
        assert_eq!(store.images().unwrap(), std::slice::from_ref(&old));
        let new = Image { digest: Sha256::from_bytes([2; 32]), ..old.clone() };
        store.put_image(&new).unwrap();
        assert_eq!(store.images().unwrap(), std::slice::from_ref(&new));
        assert_eq!(store.referenced_digests().unwrap(), [new.digest]);
        store.delete_image(&old.name).unwrap();
        assert!(store.referenced_digests().unwrap().is_empty());
    }
}
