//! Guest page walk and software TLB
