def pytest_generate_tests(metafunc):
    if "any_case" in metafunc.fixturenames:
        metafunc.parametrize("any_case", [name for name in metafunc.cls.cases if name != "pixels"])
