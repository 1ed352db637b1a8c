//! What is typed after `--cpu`: `v2|v3|host[,+feature|,-feature…][,vendor=…]`.

use core::fmt;
use core::str::FromStr;

use super::feature::{Executor, Feature};

/// The maker that CPUID names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vendor {
    /// `GenuineIntel`.
    Intel,
    /// `AuthenticAMD`.
    Amd,
    /// Any other twelve characters; behaves as Intel's.
    Other([u8; 12]),
}

impl Vendor {
    /// The twelve characters.
    pub const fn name(self) -> [u8; 12] {
        match self {
            Self::Intel => *b"GenuineIntel",
            Self::Amd => *b"AuthenticAMD",
            Self::Other(name) => name,
        }
    }

    /// The vendor of that name.
    pub const fn of(name: [u8; 12]) -> Self {
        match &name {
            b"GenuineIntel" => Self::Intel,
            b"AuthenticAMD" => Self::Amd,
            _ => Self::Other(name),
        }
    }
}

impl FromStr for Vendor {
    type Err = CpuRequestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "intel" => return Ok(Self::Intel),
            "amd" => return Ok(Self::Amd),
            _ => {}
        }
        let printable = text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
        match <[u8; 12]>::try_from(text.as_bytes()) {
            Ok(name) if printable => Ok(Self::of(name)),
            _ => Err(CpuRequestError::Vendor(text.to_owned())),
        }
    }
}

/// The processor that a request starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum BaseModel {
    /// x86-64-v2 (psABI, "micro-architecture levels").
    V2,
    /// x86-64-v3.
    V3,
    /// All that can be offered on this host, in a processor of a common family. Such a VM moves only to a like host.
    #[default]
    Max,
    /// The same with the host's family, model and stepping: kernels do what they do about that processor's errata.
    Host,
}

impl BaseModel {
    /// The name it is asked for by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::V3 => "v3",
            Self::Max => "max",
            Self::Host => "host",
        }
    }
}

/// A parsed `--cpu`. The default is `max` with nothing added or removed.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CpuRequest {
    /// Where to start.
    pub base: BaseModel,
    /// Features to add, with all they need.
    pub add: Vec<Feature>,
    /// Features to remove, with all that need them.
    pub remove: Vec<Feature>,
    /// The vendor, if not the host's.
    pub vendor: Option<Vendor>,
}

/// Why a `--cpu` cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuRequestError {
    /// The first word is not a model.
    #[error("unknown CPU model '{0}'; say v2, v3, max or host")]
    Model(String),
    /// A later word is neither ±feature nor vendor=.
    #[error(
        "'{0}' in the CPU model is not understood; say +feature, -feature or vendor=intel|amd|<12 characters>"
    )]
    Item(String),
    /// No such feature.
    #[error("unknown CPU feature '{name}'{}", .nearest.map(|n| format!("; did you mean '{n}'?")).unwrap_or_default())]
    Feature {
        /// As typed.
        name: String,
        /// The nearest name there is.
        nearest: Option<&'static str>,
    },
    /// The feature states a fact about the host and cannot be chosen.
    #[error("CPU feature '{0}' states how the host's x87 unit behaves and cannot be chosen")]
    Statement(&'static str),
    /// Not a vendor.
    #[error("CPU vendor '{0}' is neither intel, amd nor exactly 12 printable characters")]
    Vendor(String),
    /// Added and removed.
    #[error("CPU feature '{0}' is both added and removed")]
    Both(&'static str),
}

impl FromStr for CpuRequest {
    type Err = CpuRequestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut items = text.split(',');
        let model = items.next().unwrap_or_default();
        let base = [BaseModel::V2, BaseModel::V3, BaseModel::Max, BaseModel::Host]
            .into_iter()
            .find(|m| m.name() == model)
            .ok_or_else(|| CpuRequestError::Model(model.to_owned()))?;
        let mut request = Self { base, ..Self::default() };
        for item in items {
            if let Some(name) = item.strip_prefix('+') {
                request.add.push(feature(name)?);
            } else if let Some(name) = item.strip_prefix('-') {
                request.remove.push(feature(name)?);
            } else if let Some(name) = item.strip_prefix("vendor=") {
                request.vendor = Some(name.parse()?);
            } else {
                return Err(CpuRequestError::Item(item.to_owned()));
            }
        }
        match request.add.iter().find(|f| request.remove.contains(f)) {
            Some(both) => Err(CpuRequestError::Both(both.name())),
            None => Ok(request),
        }
    }
}

fn feature(name: &str) -> Result<Feature, CpuRequestError> {
    let feature = Feature::by_name(name).ok_or_else(|| CpuRequestError::Feature {
        name: name.to_owned(),
        nearest: Feature::nearest_name(name),
    })?;
    match feature.executor() {
        Executor::Statement => Err(CpuRequestError::Statement(feature.name())),
        Executor::Engine | Executor::Host => Ok(feature),
    }
}

impl fmt::Display for CpuRequest {
    /// The request as it would be typed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.base.name())?;
        self.add.iter().try_for_each(|x| write!(f, ",+{}", x.name()))?;
        self.remove.iter().try_for_each(|x| write!(f, ",-{}", x.name()))?;
        match self.vendor {
            None => Ok(()),
            Some(vendor) => write!(f, ",vendor={}", String::from_utf8_lossy(&vendor.name())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_printing() {
        let r: CpuRequest = "v3,+aes,-pcid,-1gb".parse::<CpuRequest>().map_or_else(
            |e| {
                assert_eq!(e, CpuRequestError::Feature { name: "1gb".into(), nearest: None });
                "v3,+aes,-pcid,vendor=amd".parse().unwrap()
            },
            |_| panic!("'1gb' is no feature"),
        );
        assert_eq!(r.base, BaseModel::V3);
        assert_eq!((r.add.as_slice(), r.remove.as_slice()), (&[Feature::Aes][..], &[Feature::Pcid][..]));
        assert_eq!(r.vendor, Some(Vendor::Amd));
        assert_eq!(r.to_string().parse::<CpuRequest>().unwrap(), r);
    }

    #[test]
    fn one_sentence_for_each_mistake() {
        let says = |text: &str| text.parse::<CpuRequest>().unwrap_err().to_string();
        assert_eq!(says("v4"), "unknown CPU model 'v4'; say v2, v3, max or host");
        assert_eq!(says(""), "unknown CPU model ''; say v2, v3, max or host");
        assert_eq!(says("v3,+avx22"), "unknown CPU feature 'avx22'; did you mean 'avx2'?");
        assert_eq!(says("v3,+quantum"), "unknown CPU feature 'quantum'");
        assert_eq!(says("v3,+aes,-aes"), "CPU feature 'aes' is both added and removed");
        assert!(says("v3,aes").contains("'aes' in the CPU model is not understood"));
        assert!(says("v3,vendor=acme").contains("exactly 12"));
        assert!(says("v3,-zero_fcs_fds").contains("cannot be chosen"));
    }

    #[test]
    fn vendors() {
        assert_eq!("GenuineIntel".parse(), Ok(Vendor::Intel));
        assert_eq!("TransmetaCPU".parse(), Ok(Vendor::Other(*b"TransmetaCPU")));
        assert!("Transméta123".parse::<Vendor>().is_err());
    }
}
