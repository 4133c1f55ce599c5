def pytest_generate_tests(metafunc):
    if "any_case" in metafunc.fixturenames:
        metafunc.parametrize("any_case", metafunc.cls.cases)
