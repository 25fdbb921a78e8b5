package hsm

// throwaway labels the extraction test's key.
const throwaway = "bulla extraction test"
