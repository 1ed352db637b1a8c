//! A device that goes to a VM that runs: opened by the command, made by the VM.
//!
//! The VM's process is in its jail and opens nothing by name. So the command opens what the device needs, with the rights and at the
//! place of whoever typed it, and sends the open files with the request; what they are goes before them as [`Device`].

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use backend::{Format, Layer, Layers};
use control::{Device, ImageFile};
use host::tap::{Facts, Tap};
use spec::{DiskSpec, NetSpec};
use vm::Attachment;

/// Opens a disk's files.
///
/// # Errors
/// If they cannot be had, or are no disk's.
pub(super) fn disk(spec: &DiskSpec) -> Result<(Device, Vec<OwnedFd>)> {
    let (mut images, mut files) = (Vec::new(), Vec::new());
    for layer in vm::disk_image(spec).layers()?.into_inner() {
        images.push(ImageFile {
            name: layer.path.display().to_string(),
            qcow2: layer.format == Format::Qcow2,
            read_only: layer.read_only,
            durable: layer.durable,
        });
        files.push(layer.file.into());
    }
    Ok((Device::Disk { spec: spec.to_string(), images }, files))
}

/// Opens what a network adapter leads to.
///
/// # Errors
/// If it leads nowhere, or its device cannot be had.
pub(super) fn network(spec: &NetSpec) -> Result<(Device, Vec<OwnedFd>)> {
    match spec {
        NetSpec::None => bail!("--net none is no adapter to be plugged in: write user or tap=DEVICE"),
        NetSpec::User(_) => {
            let resolvers = vm::host_resolvers();
            Ok((Device::User { spec: spec.to_string(), resolvers }, Vec::new()))
        }
        NetSpec::Tap(tap) => {
            let refused = |source| vm::VmError::Tap { device: tap.device.clone(), source };
            let (device, Facts { address, mtu }) = Tap::open(&tap.device).map_err(refused)?;
            Ok((Device::Tap { spec: spec.to_string(), address, mtu }, vec![device.into()]))
        }
    }
}

/// The device, with its files.
///
/// # Errors
/// If it is none, or they are not its files.
pub(super) fn attachment(device: Device, files: Vec<OwnedFd>) -> Result<Attachment> {
    match device {
        Device::Disk { spec, images } => {
            ensure!(images.len() == files.len(), "not every image's file has come");
            let layer = |(image, file): (ImageFile, OwnedFd)| Layer {
                path: PathBuf::from(image.name),
                file: file.into(),
                format: if image.qcow2 { Format::Qcow2 } else { Format::Raw },
                read_only: image.read_only,
                durable: image.durable,
            };
            let layers = Layers::new(images.into_iter().zip(files).map(layer).collect());
            Ok(Attachment::Disk { spec: spec.parse()?, layers: layers.context("a chain that cannot be")? })
        }
        Device::User { spec, resolvers } => match spec.parse()? {
            NetSpec::User(spec) => Ok(Attachment::User { spec, resolvers }),
            _ => bail!("another network than it says"),
        },
        Device::Tap { spec, address, mtu } => match (spec.parse()?, files.into_iter().next()) {
            (NetSpec::Tap(spec), Some(device)) => {
                Ok(Attachment::Tap { spec, device, facts: Facts { address, mtu } })
            }
            _ => bail!("another network than it says"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_comes_back_from_what_is_sent_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a,b.img");
        std::fs::write(&path, [0; 512]).unwrap();
        let spec = DiskSpec { ops: 7.try_into().ok(), ..DiskSpec::new(path) };
        let sent = || {
            let (device, files) = disk(&spec).unwrap();
            let text = serde_json::to_string(&device).unwrap();
            (serde_json::from_str::<Device>(&text).unwrap(), files)
        };
        let (device, files) = sent();
        assert!(device.has_files());
        let Attachment::Disk { spec: got, layers } = attachment(device, files).unwrap() else { panic!() };
        assert_eq!((got, layers.into_inner().len()), (spec.clone(), 1));
        // The lock went with the file.
        let (device, mut files) = sent();
        files.clear();
        assert!(attachment(device, files).is_err(), "without its files");
    }

    #[test]
    fn networks_are_what_they_say() {
        let (user, none) = network(&NetSpec::default()).unwrap();
        assert!(none.is_empty() && !user.has_files());
        assert!(matches!(attachment(user, none), Ok(Attachment::User { .. })));
        assert!(network(&NetSpec::None).unwrap_err().to_string().contains("tap=DEVICE"));
        let lie = Device::User { spec: "tap=tap0".into(), resolvers: Vec::new() };
        assert!(attachment(lie, Vec::new()).is_err());
        let lie = Device::Tap { spec: "tap=tap0".into(), address: [2; 6], mtu: 1500 };
        assert!(attachment(lie, Vec::new()).is_err(), "without its file");
    }
}
